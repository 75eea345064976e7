"""Adapters truncated to a rank for each layer: compared as ranks are, offered only if better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from peft import PeftModel

import rankwise
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Findings, Rule
from rankwise.engine.reference import score_adapter
from rankwise.lora import Adapter, ranks_by_budget, read_adapter, spectrum, truncate, write_adapter
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.conversion import for_original_base
from rankwise.store.conclusion import RANK_PATTERN_DIRECTORY
from rankwise.store.records import TrialRecord, read_json, select_trials
from rankwise.sweeps import rank_pattern
from rankwise.sweeps.config import make_config
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.rank_pattern import try_rank_pattern
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run
from tests.conftest import make_reviews

RANK, TRAINED = 2, 8


@pytest.fixture(scope="module")
def request_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("rank_pattern") / "reviews.csv"
    make_reviews(400).to_csv(data, index=False)
    common = {
        "model": str(tiny_model),
        "data": data,
        "ranks": (RANK, TRAINED),
        "learning_rate": 5e-3,
        "margin": 0.5,
    }
    return {**common, "strategy": "once", "out": data.parent / "out"}


@pytest.fixture(scope="module")
def decision(request_of: dict[str, Any]) -> dict[str, Any]:
    rankwise.sweep(**request_of)
    return read_json(request_of["out"] / "decision.json") or {}


class Scoring:
    """An engine that adds ``loss`` to the stored losses of the truncated adapters of the same seed."""

    def __init__(self, run: Run, truncations: Sequence[TrialRecord], loss: float) -> None:
        self.run, self.truncations, self.loss = run, truncations, loss
        self.scored: list[Adapter] = []

    def score(self, adapters: Sequence[Adapter]) -> list[pd.DataFrame]:
        self.scored += adapters
        rows = [pd.read_parquet(trial.directory / "evidence.parquet") for trial in self.truncations]
        wobble = np.random.default_rng(0).normal(0, 0.01, len(rows[0]))
        return [
            one.assign(loss=one["loss"] + self.loss + wobble).sample(frac=1, random_state=0)
            for one in rows
        ]


@pytest.mark.parametrize(("loss", "better"), [(-0.1, True), (0.0, False), (0.1, False)])
def test_a_rank_pattern_is_offered_only_if_it_is_better(
    request_of: dict[str, Any], decision: dict[str, Any], loss: float, better: bool
) -> None:
    with open_run(make_config(request_of), Silent()) as run:
        results, truncations = read_rank_results(run.store.evidence()), truncated_to_rank(run)
        engine = Scoring(run, truncations, loss)
        findings = Findings(results, Rule(margin=0.5, trained_at=TRAINED))
        pattern, better_adapter = try_rank_pattern(findings, RANK, truncations, run.store, engine)  # type: ignore[arg-type]
    assert pattern is not None
    assert pattern.better is better
    assert pattern.gain == pytest.approx(-loss, abs=5e-3)
    assert pattern.gain_ci[0] < pattern.gain < pattern.gain_ci[1]
    assert (better_adapter is engine.scored[0]) is better
    assert dict(pattern.ranks) == {pair.name: pair.rank for pair in factor_pairs(engine.scored[0])}
    for adapter, trial in zip(engine.scored, truncations, strict=True):
        one_rank = read_adapter(run.store.adapter_directory(trial.name))
        assert entries(adapter) <= entries(one_rank) == pattern.entries


def test_an_adapter_saved_at_twice_its_rank_is_truncated_to_the_same_size(
    request_of: dict[str, Any], decision: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PiSSA and OLoRA save such adapters for the original base."""

    def doubled(directory: Path) -> Adapter:
        adapter = read_adapter(directory)
        none = Adapter(
            {name: tensor * 0 for name, tensor in adapter.tensors.items()}, adapter.config
        )
        return for_original_base(adapter, none)

    monkeypatch.setattr(rank_pattern, "read_adapter", doubled)
    with open_run(make_config(request_of), Silent()) as run:
        results, truncations = read_rank_results(run.store.evidence()), truncated_to_rank(run)
        findings = Findings(results, Rule(margin=0.5, trained_at=TRAINED))
        engine = Scoring(run, truncations, 0.0)
        pattern, _ = try_rank_pattern(findings, RANK, truncations, run.store, engine)  # type: ignore[arg-type]
        one_rank = read_adapter(run.store.adapter_directory(truncations[0].name))
    assert pattern is not None
    assert pattern.entries == entries(one_rank)
    assert entries(engine.scored[0]) <= entries(one_rank)


def truncated_to_rank(run: Run) -> list[TrialRecord]:
    """Return the trials of the chosen rank, best first."""
    return sorted(select_trials(run.store.trials(), rank=RANK), key=lambda trial: trial.eval_loss)


def entries(adapter: Adapter) -> int:
    return sum(pair.a.numel() + pair.b.numel() for pair in factor_pairs(adapter))


def test_the_gain_is_what_peft_gives(
    request_of: dict[str, Any], decision: dict[str, Any], tmp_path: Path
) -> None:
    gains = []
    with open_run(make_config(request_of), Silent()) as run:
        held_out = run.encode("held_out")
        for trial in truncated_to_rank(run):
            found = spectrum(read_adapter(run.store.adapter_directory(str(trial.truncated_from))))
            out = tmp_path / str(trial.seed)
            write_adapter(
                truncate(found, ranks_by_budget(found, decision["rank_pattern"]["entries"])), out
            )
            one_rank = score_adapter(run.base, run.store.adapter_directory(trial.name), held_out)
            gains.append((one_rank["loss"] - score_adapter(run.base, out, held_out)["loss"]).mean())
    assert decision["rank_pattern"]["gain"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_the_better_adapter_loads_in_peft(
    request_of: dict[str, Any], decision: dict[str, Any], tmp_path: Path
) -> None:
    is_offered = (request_of["out"] / RANK_PATTERN_DIRECTORY).exists()
    assert is_offered is decision["rank_pattern"]["better"]
    offered = tmp_path / "offered"
    with open_run(make_config(request_of), Silent()) as run:
        found = spectrum(read_adapter(next(run.store.trials_directory.glob("r8-*")) / "adapter"))
        write_adapter(truncate(found, decision["rank_pattern"]["ranks"]), offered)
        model = PeftModel.from_pretrained(run.base.model, offered)
        kept = {
            name: r
            for name, layer in model.named_modules()
            for r in getattr(layer, "r", {}).values()
        }
        model.unload()
        assert sorted(kept.values()) == sorted(decision["rank_pattern"]["ranks"].values())
