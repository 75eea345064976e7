"""Which evaluation of a run counts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise import analyze
from rankwise.analysis.evaluations import kept_step
from tests.analysis.results import MEANS, refused, runs, save, save_table

LOG = [{"loss": 1.0, "step": 50}, {"eval_loss": 0.8, "step": 100}, {"eval_loss": 0.9, "step": 200}]


def save_runs(directory: Path, **state: Any) -> None:
    """Save runs whose best evaluation supports rank 16, and whose last one supports rank 8."""
    from transformers import TrainerState

    for _, run in runs().iterrows():
        rank, seed = int(run["lora_r"]), int(run["seed"])
        place = directory / f"r{rank}-seed{seed}"
        place.mkdir(parents=True)
        late = run["eval_loss"] + (0.05 if rank > 8 else 0.0)
        rows = [{"eval_loss": run["eval_loss"], "step": 100}, {"eval_loss": late, "step": 200}]
        kept = {"best_metric": run["eval_loss"], "best_global_step": 100, **state}
        TrainerState(global_step=200, log_history=rows, **kept).save_to_json(
            str(place / "trainer_state.json")
        )
        save(place / "adapter_config.json", {"peft_type": "LORA", "r": rank})


def test_a_kept_checkpoint_counts_and_either_may_be_asked_for(tmp_path: Path) -> None:
    save_runs(tmp_path)
    found = analyze(tmp_path)
    assert found.decision.rank == 16
    assert (
        "the best evaluation of each run counts, whose checkpoint it kept; --evaluation last "
        "counts the last (step 100)" in found.notes
    )
    last = analyze(tmp_path, evaluation="last")
    assert last.decision.rank == 8
    assert "the last evaluation of each run counts (step 200)" in last.notes
    assert analyze(tmp_path, evaluation="best").decision.rank == 16


def test_without_a_kept_checkpoint_the_last_counts(tmp_path: Path) -> None:
    save_runs(tmp_path, best_metric=None, best_global_step=None)
    assert analyze(tmp_path).decision.rank == 8
    best = analyze(tmp_path, evaluation="best")
    assert best.decision.rank == 16
    assert any(note.startswith("the best evaluation of each run counts") for note in best.notes)
    assert "evaluation 'worst': allowed is best or last" in refused(tmp_path, evaluation="worst")


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"best_global_step": 100}, 100),
        ({"best_model_checkpoint": "out/checkpoint-100"}, 100),  # before transformers 4.50
        ({"best_metric": 0.9}, 200),
        ({"best_global_step": 150}, None),  # nothing was evaluated there
        ({"best_global_step": None, "best_metric": None}, None),
        ({}, None),
    ],
)
def test_the_kept_step_is_found(state: dict[str, Any], step: int | None) -> None:
    assert kept_step(state, LOG) == step


def test_a_table_with_a_row_for_each_step_has_one_evaluation_a_run(tmp_path: Path) -> None:
    late = runs().assign(step=200)
    late["eval_loss"] += 0.05 * (late["lora_r"] > 8)
    log = pd.concat([runs().assign(step=100), late])
    path = save_table(tmp_path / "log.csv", log)
    found = analyze(path)
    assert (found.decision.rank, len(found.evidence)) == (8, 12)
    assert "log.csv: the last evaluation of each run counts (step 200)" in found.notes
    assert analyze(path, evaluation="best").decision.rank == 16
    logged = log.assign(eval_loss=log["eval_loss"].where(log["step"] == 100), loss=1.0)
    assert analyze(save_table(tmp_path / "train.csv", logged)).decision.rank == 16


def test_different_runs_are_not_taken_for_steps_of_one(tmp_path: Path) -> None:
    rows = [(f"{rank}{name}", rank, step, loss + step / 1e3) for rank, loss in MEANS.items()
            for name in "ab" for step in (1, 2)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["run_id", "lora_r", "step", "eval_loss"])
    assert "4 rows repeat another" in refused(save_table(tmp_path / "runs.csv", table))


def test_an_evaluation_that_cannot_be_chosen_is_said(tmp_path: Path) -> None:
    found = analyze(save_table(tmp_path / "a.csv", runs()), evaluation="best")
    assert "evaluation is not used: there is one evaluation for each run" in found.notes
