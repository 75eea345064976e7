"""A round of random kills, as `make torture` runs many, and what it would notice."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from benchmarks.torture import kills

from tests.factories import finished, save_sweep


def test_a_changed_figure_is_noticed_and_the_clock_is_not(tmp_path: Path) -> None:
    save_sweep(tmp_path / "a", [finished(4), finished(8)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert kills.outcome(tmp_path / "a") == kills.outcome(tmp_path / "b")
    metrics = next((tmp_path / "b/trials").glob("r8-*/metrics.jsonl"))
    text = metrics.read_text()
    metrics.write_text(text.replace('"train_seconds": 1.5', '"train_seconds": 2.5'))
    assert metrics.read_text() != text
    assert kills.outcome(tmp_path / "a") == kills.outcome(tmp_path / "b")
    metrics.write_text(text.replace('"train_loss": 0.7', '"train_loss": 0.8'))
    assert kills.outcome(tmp_path / "a") != kills.outcome(tmp_path / "b")


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "CASES", {"checkpoints": kills.CASES["checkpoints"]})
    results = tmp_path / "results.json"
    kills.run(Namespace(out=tmp_path / "out", results=results, kills=1, minutes=10))
    done = json.loads(results.read_text())["tasks"]
    assert kills.kills(done) >= 1
    assert not [fault for each in done.values() for fault in each["faults"]]
