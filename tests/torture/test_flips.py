"""A few flipped bits in every kind of file; `benchmarks/torture/flips.py` flips thousands."""

import random
from pathlib import Path

import pytest
from benchmarks.torture.flips import MADE_ANEW, NO_EFFECT, REFUSED, flipped, make_kinds

from rankwise.models import fingerprint

FLIPS = 20


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHED_FROM", "SETTLED_SECONDS", "cache_directory"):  # as they are, afterwards
        monkeypatch.setattr(fingerprint, name, getattr(fingerprint, name))
    outcomes = {}
    for name, kind in make_kinds(tmp_path).items():
        for number in range(2 if len(kind.files) > 1 else FLIPS):
            with flipped(kind.files, random.Random(f"{name} {number}")):
                outcomes[name] = kind.outcome()
    assert len(outcomes) > 12
    assert set(outcomes.values()) == {REFUSED, NO_EFFECT, MADE_ANEW}
    assert outcomes["adapter/adapter_model.safetensors"] == outcomes["evidence.parquet"] == REFUSED
