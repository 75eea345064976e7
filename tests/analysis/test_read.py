"""Results of several kinds and sources, read into one table."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise import analyze
from rankwise.analysis.read import read_results
from rankwise.errors import RequestError
from tests import factories
from tests.analysis.results import refused, save, save_table


def save_sweep(
    directory: Path, diverged: tuple[int, ...] = (), ranks: tuple[int, ...] = (4, 8)
) -> None:
    """Save a rankwise sweep of two held-out examples."""
    trials = []
    for rank in ranks:
        steps = [
            {"step": 1, "train_loss": 0.7},
            {"step": 2, "train_loss": float("nan") if diverged else 0.6},
        ]
        trials.append(
            factories.finished(
                rank, diverged=rank in diverged, losses=(1 / rank, 0.75), steps=steps
            )
        )
    factories.save_sweep(directory, trials, factories.request(ranks=list(ranks)))


def test_a_rankwise_sweep_is_read(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    imported = read_results([tmp_path])
    assert imported.metrics == ("loss", "accuracy")
    assert imported.evidence.to_dict("list") == {
        "rank": [4, 4, 8, 8], "seed": [0] * 4, "learning_rate": [1e-3] * 4, "example_id": [3, 5, 3, 5],
        "diverged": [False] * 4, "loss": [0.25, 0.75, 0.125, 0.75], "accuracy": [1.0, 0.0, 1.0, 0.0],
    }  # fmt: skip
    assert imported.train_loss is not None
    assert imported.train_loss.groupby("rank")["train_loss"].apply(list).to_dict() == {
        4: [0.7, 0.6],
        8: [0.7, 0.6],
    }
    assert imported.notes == ()


def test_a_diverged_trial_of_a_sweep_has_no_loss(tmp_path: Path) -> None:
    save_sweep(tmp_path, diverged=(8,))
    imported = read_results([tmp_path])
    gone = imported.evidence.query("diverged")
    assert gone[["rank", "example_id"]].to_numpy().tolist() == [[8, -1]]
    assert np.isnan(gone["loss"]).all()
    assert imported.train_loss is not None
    assert np.isfinite(imported.train_loss["train_loss"]).all()


def test_costs_of_a_sweep_are_in_the_table(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    found = analyze(tmp_path)
    assert found.score == "accuracy"
    for row in found.decision.table:
        assert (row.trainable_params, row.train_seconds, row.peak_memory_bytes) == (6, 1.5, 1000)
    more = pd.DataFrame(
        {"rank": [16, 16, 32, 32], "learning_rate": 1e-3, "example_id": [3, 5] * 2, "loss": 0.5}
    )
    more.to_csv(tmp_path / "more.csv", index=False)
    table = analyze(tmp_path, tmp_path / "more.csv").decision.table
    assert [row.train_seconds for row in table] == [1.5, 1.5, None, None]


def test_two_sweeps_are_joined(tmp_path: Path) -> None:
    save_sweep(tmp_path / "one")
    save_sweep(tmp_path / "two", ranks=(16,))
    assert sorted(read_results([tmp_path / "one", tmp_path / "two"]).evidence["rank"].unique()) == [
        4,
        8,
        16,
    ]


def test_sweeps_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "sweep.json", {})
    assert "holds no results" in refused(tmp_path)
    factories.save_sweep(tmp_path / "new", [])
    assert "has no complete trial yet; run it first" in refused(tmp_path / "new")
    save_sweep(tmp_path / "sweep")
    evidence = next((tmp_path / "sweep" / "trials").glob("r4*")) / "evidence.parquet"
    evidence.write_bytes(b"not parquet")
    assert "cannot be read" in refused(tmp_path / "sweep")
    evidence.unlink()
    assert "cannot be read" in refused(tmp_path / "sweep")
    for file in (tmp_path / "sweep" / "trials").glob("*/evidence.parquet"):
        file.unlink()
    for trial in (tmp_path / "sweep" / "trials").iterdir():
        pd.DataFrame({"rank": [4], "loss": [1.0]}).to_parquet(trial / "evidence.parquet")
        factories.seal_trial(trial)
    assert (
        "its evidence lacks the column seed, learning_rate, example_id, score, diverged"
        in refused(tmp_path / "sweep")
    )


def test_paths_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no results were named"):
        read_results([])
    assert "no such file" in refused(tmp_path / "absent.csv")
    assert "no such file" in refused(tmp_path / "absent")
    assert "holds no results; allowed are a sweep" in refused(tmp_path)
    assert (
        "holds no results; allowed are a list of records, a result of PEFT's method comparison"
        in refused(save(tmp_path / "a.json", {"rank": 4}))
    )
    assert "no column that is plainly a metric" in refused(save(tmp_path / "b.json", [{"rank": 4}]))
    (tmp_path / "c.json").write_text('{"run_info": ')
    assert "c.json' cannot be read as JSON" in refused(tmp_path / "c.json")
    (tmp_path / "d.xlsx").write_text("rank")
    assert "allowed endings are .csv" in refused(tmp_path / "d.xlsx")


def test_columns_are_only_for_tables(tmp_path: Path) -> None:
    save_sweep(tmp_path)
    assert "seed_column is for tables" in refused(tmp_path, seed_column="run")
    assert "there is no metric 'bleu'; metrics: loss, accuracy" in refused(tmp_path, metric="bleu")
    assert read_results([tmp_path], metric="accuracy").metrics == ("accuracy", "loss")
    assert read_results([tmp_path], metric="score").metrics == ("accuracy", "loss")


def test_reading_results_loads_no_torch() -> None:
    code = "import sys, rankwise.analysis.read; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_more_ranks_than_can_be_compared_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"rank": range(1, 2001), "loss": 0.5})
    assert "results of 2000 ranks in r.csv; allowed are 64" in refused(
        save_table(tmp_path / "r.csv", table), rank_column="rank"
    )
