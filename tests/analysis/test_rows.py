"""Rows that are no results of LoRA."""

from pathlib import Path

import pandas as pd
import pytest

from rankwise import analyze
from tests.analysis.results import refused, runs, save_table

# MLflow, W&B, Optuna and Ray Tune.
UNFINISHED = (
    "FAILED", "RUNNING", "KILLED", "SCHEDULED", "crashed", "killed", "failed", "preempting",
    "running", "PRUNED", "FAIL", "WAITING", "ERROR", "diverged", "TrialState.PRUNED",
)  # fmt: skip
FINISHED = ("FINISHED", "finished", "COMPLETE", "TERMINATED", "TrialState.COMPLETE")


@pytest.mark.parametrize("state", UNFINISHED)
@pytest.mark.parametrize("column", ["state", "State", "status"])
def test_unfinished_runs_are_left_out_and_counted(tmp_path: Path, state: str, column: str) -> None:
    # Rank 4 looks best in runs that did not finish, and the last row has blanks.
    lost = pd.DataFrame({"lora_r": [4, None], "seed": [9, None], "eval_loss": [0.1, None]})
    table = pd.concat([runs().assign(**{column: "finished"}), lost.assign(**{column: state})])
    found = analyze(save_table(tmp_path / "a.csv", table))
    assert found.decision.rank == 16
    assert f"a.csv: 2 of 14 rows are left out: {column} is {state} (2)" in found.notes


@pytest.mark.parametrize("state", FINISHED)
def test_finished_runs_stay(tmp_path: Path, state: str) -> None:
    found = analyze(save_table(tmp_path / "a.csv", runs().assign(status=state)))
    assert len(found.evidence) == 12
    assert not any("rows" in note for note in found.notes)


def test_unknown_states_stay_and_are_said(tmp_path: Path) -> None:
    table = runs().assign(state=["finished"] * 11 + ["moved"])
    found = analyze(save_table(tmp_path / "a.csv", table))
    assert (
        "a.csv: 1 rows are kept, though it is not known whether state moved (1) means finished"
        in found.notes
    )
    table["state"] = "Ohio"  # another kind of state
    assert len(analyze(save_table(tmp_path / "b.csv", table)).evidence) == 12


def test_a_table_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    path = save_table(tmp_path / "a.csv", runs().assign(state="crashed"))
    assert "'a.csv' has no results: none of 12 runs finished" in refused(path)


@pytest.mark.parametrize(
    "rank", ["", "0", "none", "None", "full", "Full FT", "base", "-", "full fine-tuning"]
)
def test_baselines_are_left_out_and_counted(tmp_path: Path, rank: str) -> None:
    baseline = pd.DataFrame({"lora_r": [rank] * 3, "seed": [1, 2, 3], "eval_loss": [0.1] * 3})
    table = pd.concat([runs().astype({"lora_r": str}), baseline])
    found = analyze(save_table(tmp_path / "a.csv", table))
    assert found.decision.rank == 16
    shown = rank or "blank"
    assert f"a.csv: 3 of 15 rows are left out: trained without LoRA (rank: {shown})" in found.notes


@pytest.mark.parametrize(
    ("column", "lora", "baseline"),
    [("finetuning_type", "lora", "full"), ("method", "lora", "Full fine-tuning"), ("params.use_lora", True, False)],
)  # fmt: skip
def test_a_column_may_say_that_a_row_is_a_baseline(
    tmp_path: Path, column: str, lora: object, baseline: object
) -> None:
    full = runs().query("lora_r == 4").assign(eval_loss=0.1, **{column: baseline})
    table = pd.concat([runs().assign(**{column: lora}), full])
    assert analyze(save_table(tmp_path / "a.csv", table)).decision.rank == 16


def test_a_baseline_with_a_lora_rank_stays(tmp_path: Path) -> None:
    found = analyze(save_table(tmp_path / "a.csv", runs().assign(method="baseline")))
    assert (found.decision.rank, len(found.evidence)) == (16, 12)
