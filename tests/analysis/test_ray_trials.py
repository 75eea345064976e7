"""Ray Tune's directories."""

import json
from pathlib import Path

import pandas as pd
import pytest

from rankwise import analyze
from tests.analysis.results import refused, runs, save


def save_experiment(directory: Path, results: str = "result.json", states: bool = True) -> Path:
    """Save an experiment as Ray Tune writes it, with two trials that did not finish."""
    trials = []
    for number, row in enumerate(runs().to_dict("records")):
        config = {"lora_r": int(row["lora_r"]), "seed": int(row["seed"]), "opt": {"lr": 1e-3}}
        name = f"train_{number:05d}_lora_r={row['lora_r']},seed={row['seed']}_2026-05-01_10-00-00"
        trial = directory / name
        trial.mkdir(parents=True)
        save(trial / "params.json", config)
        reports = [
            {"eval_loss": loss, "eval": {"acc": 0.5}, "training_iteration": step, "done": False,
             "time_total_s": 1.0, "pid": 1, "config": config}
            for step, loss in ((1, 1.2), (2, row["eval_loss"]))
        ]  # fmt: skip
        if results == "result.json":
            (trial / results).write_text("".join(json.dumps(row) + "\n" for row in reports))
        else:
            pd.json_normalize(reports, sep="/").to_csv(trial / results, index=False)
        trials.append([json.dumps({"relative_logdir": name, "status": "TERMINATED"}), "{}"])
    for name, state in (("late", "RUNNING"), ("lost", "ERROR")):
        (directory / name).mkdir()
        save(directory / name / "params.json", {"lora_r": 4, "seed": 9})
        (directory / name / "result.json").write_text(
            '{"eval_loss": 0.1, "training_iteration": 1}\n'
        )
        if state == "ERROR":
            (directory / name / "error.txt").write_text("out of memory")
        trials.append([json.dumps({"relative_logdir": name, "status": state}), "{}"])
    if states:
        save(directory / "experiment_state-2026-05-01_10-00-00.json", {"trial_data": trials})
    return directory


@pytest.mark.parametrize("results", ["result.json", "progress.csv"])
def test_trials_are_runs_and_unfinished_ones_are_left_out(tmp_path: Path, results: str) -> None:
    found = analyze(save_experiment(tmp_path / "exp", results))
    assert (found.decision.rank, len(found.evidence)) == (16, 12)
    assert found.evidence["learning_rate"].unique().tolist() == [1e-3]
    assert "run late is left out: its state is RUNNING" in found.notes
    assert "run lost is left out: its state is ERROR" in found.notes
    assert "the last evaluation of each run counts (step 2)" in found.notes
    assert found.evidence["acc"].tolist() == [0.5] * 12


def test_a_bare_loss_is_asked_about(tmp_path: Path) -> None:
    for path in save_experiment(tmp_path, states=False).glob("train*/result.json"):
        path.write_text(path.read_text().replace("eval_loss", "loss").replace('"acc"', '"sec"'))
    for name in ("late", "lost"):
        (tmp_path / name / "error.txt").write_text("stopped")
    assert "if its 'loss' is that of held-out data, say so with --metric loss" in refused(tmp_path)
    assert analyze(tmp_path, metric="loss").decision.rank == 16
