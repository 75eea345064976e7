"""Digests: the same content has the same one, and no damage goes unseen."""

import json
import subprocess
from pathlib import Path

import pytest

from rankwise.store.digests import (
    check_file,
    digest_of,
    read_checked,
    read_sums,
    sealed_bytes,
    sums_bytes,
    unseal,
)
from tests.factories import flipped_bit

CONTENT = {"name": "é", "rates": [1e-05, 0.1], "whole": 3, "none": None, "inner": {"a": True}}


def test_equal_content_has_one_digest_in_memory_and_from_json() -> None:
    assert digest_of(CONTENT) == digest_of(json.loads(json.dumps(CONTENT)))
    assert digest_of({"a": 1.0, "b": (1, 2)}) == digest_of({"b": [1, 2], "a": 1})
    for other in ({**CONTENT, "whole": 4}, {**CONTENT, "rates": [1e-05, 0.1 + 1e-17 + 2e-17]}):
        assert (digest_of(other) == digest_of(CONTENT)) is (other == CONTENT)


def test_every_flipped_bit_of_a_sealed_file_is_seen_or_has_no_effect() -> None:
    written = sealed_bytes(CONTENT)
    assert unseal(json.loads(written)) == CONTENT
    seen = 0
    for place in range(8 * len(written)):
        try:
            assert unseal(json.loads(flipped_bit(written, place))) == CONTENT
        except (ValueError, AttributeError):
            seen += 1
    assert seen > 0.9 * 8 * len(written)


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    contents = {"b.json": b"{}", "a/weights": bytes(1000)}
    (tmp_path / "a").mkdir()
    for name, data in {**contents, "SHA256SUMS": sums_bytes(contents)}.items():
        (tmp_path / name).write_bytes(data)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a/weights: OK", "b.json: OK"]
    sums = read_sums(tmp_path)
    assert read_checked(tmp_path / "b.json", "b.json", sums) == b"{}"
    (tmp_path / "b.json").write_bytes(b"[]")
    for read in (read_checked, check_file):
        with pytest.raises(ValueError, match="damaged, its SHA-256"):
            read(tmp_path / "b.json", "b.json", sums)
        read(tmp_path / "a" / "weights", "a/weights", sums)
    with pytest.raises(ValueError, match="damaged"):  # not listed
        read_checked(tmp_path / "b.json", "c.json", sums)
    assert read_checked(tmp_path / "b.json", "b.json", None) == b"[]"
    assert read_sums(tmp_path / "a") is None
    (tmp_path / "SHA256SUMS").write_text("no digest\n")
    with pytest.raises(ValueError, match="a line is no digest"):
        read_sums(tmp_path)
