"""``--diagnose``: one more trial after the decision, apart from those that are compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rankwise
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Findings, Rule
from rankwise.lora.alpha import carried_rate, parse_alpha_policy
from rankwise.store.records import TrialRecord, read_trial
from rankwise.sweeps.diagnosis import plan_further_trial
from tests.factories import Notes
from tests.tiny_models import make_dialogues, save_tiny_lm


@pytest.fixture
def request_of(swept: Path, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """The request of a finished sweep, whose directory is copied."""
    shutil.copytree(swept.parent, tmp_path / "home")
    return {
        "model": str(tiny_model),
        "data": tmp_path / "home" / "reviews.csv",
        "ranks": (2, 4, 8),
        "learning_rate": (5e-3, 1e-2),
        "margin": 0.5,
        "out": tmp_path / "home" / "out",
    }


def further_trials(out: Path) -> list[Path]:
    return sorted((out / "diagnosis").iterdir()) if (out / "diagnosis").exists() else []


def test_a_trial_with_twice_the_steps_is_told_apart_and_decides_nothing(
    request_of: dict[str, Any],
) -> None:
    out = request_of["out"]
    before = rankwise.sweep(**request_of)
    assert before.decision.needs[2].state == "not known"
    assert before.decision.needs[2].reason.endswith("The same command with --diagnose would tell.")
    after = rankwise.sweep(**request_of, diagnose=True)
    (path,) = further_trials(out)
    rank, rate = after.decision.recommended, None
    assert rank is not None
    rate = after.decision.row(rank).learning_rate
    assert path.name == f"r{rank}-lr{rate:g}-seed1-steps2"
    longer, alike = read_trial(path), read_trial(out / "trials" / f"r{rank}-lr{rate:g}-seed1")
    assert longer.step == 2 * alike.step
    assert after.decision.table == before.decision.table
    assert after.decision.answer == before.decision.answer
    assert after.evidence.equals(before.evidence)
    need = after.decision.needs[2]
    assert (need.rank, need.start, need.end) == (rank, alike.step, longer.step)
    assert need.gain == pytest.approx(alike.eval_loss - longer.eval_loss)
    content = json.loads((out / "decision.json").read_text())
    assert content["needs"][2]["gain"] == need.gain
    assert content["short_of"] == after.decision.short_of
    assert need.reason in after.report.read_text()


def test_a_complete_trial_is_read_again_and_a_lost_one_trained_alike(
    request_of: dict[str, Any],
) -> None:
    out = request_of["out"]
    first = rankwise.sweep(**request_of, diagnose=True).decision
    (path,) = further_trials(out)
    evidence, written = path / "evidence.parquet", path.stat().st_mtime_ns
    known = pd.read_parquet(evidence)
    # Also without the option: the answer stays as known as it is.
    assert rankwise.sweep(**request_of).decision == first
    assert path.stat().st_mtime_ns == written
    shutil.rmtree(path)
    assert rankwise.sweep(**request_of, diagnose=True).decision.needs == first.needs
    assert pd.read_parquet(evidence).equals(known)


def test_a_spent_budget_leaves_the_trial_out(request_of: dict[str, Any]) -> None:
    progress = Notes()
    rankwise.sweep(**request_of, diagnose=True, budget=1e-6, progress=progress)
    assert not further_trials(request_of["out"])
    assert any("the budget of 1e-06 min is spent" in note for note in progress.notes)


def test_a_dry_run_counts_it_until_it_is_complete(request_of: dict[str, Any]) -> None:
    plain, planned = rankwise.dry_run(**request_of), rankwise.dry_run(**request_of, diagnose=True)
    assert (planned.expected, planned.further) == (plain.expected + 1, 1)
    assert planned.seconds > 0 == plain.seconds
    rankwise.sweep(**request_of, diagnose=True)
    done = rankwise.dry_run(**request_of, diagnose=True)
    assert (done.expected, done.further, done.seconds) == (plain.expected, 0, 0)


@pytest.mark.parametrize("strategy", ["once", "escalate", "race", "ends"])
def test_every_strategy_has_one_more_trial_on_a_language_model(
    strategy: str, tmp_path: Path
) -> None:
    data, out = tmp_path / "dialogues.jsonl", tmp_path / "out"
    pd.DataFrame(make_dialogues(120)).to_json(data, orient="records", lines=True)
    result = rankwise.sweep(
        model=str(save_tiny_lm("llama", tmp_path)), data=data, ranks=(2, 4), strategy=strategy,
        learning_rate=1e-2, margin=5.0, out=out, diagnose=True,
    )  # fmt: skip
    (path,) = further_trials(out)
    rank = 4 if strategy == "once" else result.decision.recommended
    assert path.name == f"r{rank}-lr0.01-seed1-steps2"
    assert result.decision.needs[2].state != "not known"
    assert result.decision.capacity is not None


def records(rates: dict[int, float], step: int = 10) -> list[TrialRecord]:
    """Return trials of two seeds for each rank."""
    fields = {
        "lora_alpha": 8, "use_rslora": False, "step": step, "diverged": False, "eval_loss": 0.5,
        "eval_score": 0.5, "trainable_params": 1, "adapter_bytes": 1, "train_seconds": 1.0,
        "pack_seconds": 1.0, "pack_size": 1, "eval_seconds": 1.0, "peak_memory_bytes": 1,
    }  # fmt: skip
    return [
        TrialRecord(
            directory=Path(f"r{rank}"), rank=rank, seed=seed, learning_rate=rate, **fields
        )
        for rank, rate in rates.items()
        for seed in (0, 1)
    ]  # fmt: skip


def findings_of(losses: dict[int, float]) -> Findings:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=200)
    rows = pd.concat(
        pd.DataFrame(
            {
                "rank": rank,
                "seed": seed,
                "learning_rate": 1e-3,
                "example_id": range(200),
                "loss": loss + shared + 0.01 * generator.normal(size=200),
            }
        )
        for rank, loss in losses.items()
        for seed in (0, 1)
    )
    return Findings(read_rank_results(rows), Rule())


def test_the_largest_rank_is_trained_where_the_sweep_did_not_reach_it() -> None:
    findings = findings_of({8: 0.5})  # such as a budget leaves
    planned = plan_further_trial(findings, records({8: 1e-3}), 64, "r")
    assert planned is not None
    trial, _ = planned
    expected = carried_rate(1e-3, 8, 64, parse_alpha_policy("r"))
    assert (trial.rank, trial.seed, trial.share_of_steps) == (64, 1, None)
    assert trial.learning_rate == pytest.approx(expected, rel=5e-3)
    assert trial.lora_alpha == 64


def test_twice_the_steps_are_trained_where_more_rank_is_ruled_out() -> None:
    findings = findings_of({8: 0.5, 16: 0.5})
    planned = plan_further_trial(findings, records({8: 1e-3, 16: 1e-3}), 64, "r")
    assert planned is not None
    trial, base = planned
    assert (trial.rank, trial.seed, trial.share_of_steps) == (8, 1, 2.0)
    assert (base.rank, base.seed) == (8, 1)


def test_nothing_is_planned_where_nothing_was_learnt() -> None:
    findings = findings_of({8: 0.5, 16: 0.5})
    nothing = Findings(findings.results, Rule(chance_loss=0.1))
    assert plan_further_trial(nothing, records({8: 1e-3, 16: 1e-3}), 64, "r") is None
