"""Scores of truncations: the same as PEFT's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.engine import reference
from rankwise.engine.fused.model import PackedModel
from rankwise.errors import RequestError
from rankwise.lora.files import read_adapter
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.cuts import decompose, make_cuts, without_update
from rankwise.shrinking.held_out import base_for, encode_held_out, read_held_out
from rankwise.shrinking.scoring import Scorer, columns
from tests.shrinking.test_held_out import load


def make_scorer(lm: Path, engine: str) -> Scorer:
    config = ShrinkConfig(adapters=(lm / "adapter",), data=lm / "held-out.jsonl")
    adapter = read_adapter(lm / "adapter")
    base = base_for(load(lm), adapter, "it")
    held_out = encode_held_out(read_held_out(config, "base", adapter), base, None)
    return Scorer(base, adapter, held_out.encoded, engine)  # type: ignore[arg-type]


def test_fused_scores_are_pefts_and_passes_are_counted(lm: Path) -> None:
    decomposed = decompose(lm / "adapter")
    cuts = [*make_cuts(decomposed, [4, 1]), without_update(decomposed)]
    adapters = [decomposed.adapter, *(cut.adapter for cut in cuts)]
    fused, reference = make_scorer(lm, "fused"), make_scorer(lm, "reference")
    assert fused.obstacle is None and (fused.name, reference.name) == ("fused", "reference")
    losses = columns(fused.score(adapters, 10, 50), "loss")
    expected = columns(reference.score(adapters, 10, 50), "loss")
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    assert np.abs(losses[0] - losses[3]).max() > 0.01
    assert fused.passes == 4 * 40


def test_the_reference_engine_scores_what_the_fused_one_cannot(lm: Path) -> None:
    adapter = read_adapter(lm / "adapter")
    scorer = make_scorer(lm, "fused")
    name = "base_model.model.model.norm.weight"
    tensors = {**adapter.tensors, name: torch.ones(32)}
    other = type(adapter)(tensors, adapter.config)
    again = Scorer(scorer.base, other, scorer.examples, "fused")
    assert again.name == "reference"
    assert again.obstacle == "the adapter also has model.norm.weight"


def test_an_adapter_that_peft_cannot_attach_is_refused(lm: Path) -> None:
    adapter = read_adapter(lm / "adapter")
    scorer = make_scorer(lm, "reference")
    name, value = next((name, x) for name, x in adapter.tensors.items() if "lora_A" in name)
    kept = {key: x for key, x in adapter.tensors.items() if key != name}
    with pytest.raises(RequestError, match=r"^the adapter cannot be attached to base '.*': ."):
        scorer.score([type(adapter)({**kept, name: value[:, 1:]}, adapter.config)], 0, 10)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_an_error_in_scoring_is_not_blamed_on_the_adapter(
    lm: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = read_adapter(lm / "adapter")
    scorer = make_scorer(lm, engine)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(PackedModel, "measures", fail)
    monkeypatch.setattr(reference, "evaluate", fail)
    with pytest.raises(RuntimeError, match=r"^a kernel failed$"):
        scorer.score([adapter], 0, 10)


def test_an_adapters_own_weights_do_not_stay_in_the_base(lm: Path) -> None:
    """Another adapter of the same base is scored next."""
    adapter = read_adapter(lm / "adapter")
    scorer = make_scorer(lm, "reference")
    expected = columns(scorer.score([adapter], 0, 40), "loss")
    name = "base_model.model.model.norm.weight"
    other = type(adapter)({**adapter.tensors, name: torch.full((32,), 3.0)}, adapter.config)
    changed = columns(scorer.score([other], 0, 40), "loss")
    assert np.abs(changed - expected).max() > 0.01
    np.testing.assert_array_equal(columns(scorer.score([adapter], 0, 40), "loss"), expected)
