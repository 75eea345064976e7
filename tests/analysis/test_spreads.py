"""Means with a spread."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import analyze, select
from rankwise.analysis.spreads import stand_ins
from tests.analysis.results import MEANS, refused, runs, save_table


def means(**columns: object) -> pd.DataFrame:
    """Return a table of means for each rank, with a standard deviation of 0.003 nats."""
    return pd.DataFrame({"rank": list(MEANS), "eval_loss": list(MEANS.values()), **columns})


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"std": 0.003, "n_seeds": 5}, {}),
        ({"eval_loss_std": 0.003, "num_seeds": 5}, {}),
        ({"eval_loss_sd": 0.003, "seeds": 5}, {}),
        ({"eval_loss_stderr": 0.003 / np.sqrt(5), "n_seeds": 5}, {}),
        ({"std": 0.003}, {"seeds_per_mean": 5}),
        ({"std": 0.003, "n": 5}, {"spread": "seeds"}),
        ({"std_over_seeds": 0.003, "n": 5}, {}),
    ],
)
def test_published_means_count_as_the_seeds_behind_them(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any]
) -> None:
    found = analyze(save_table(tmp_path / "a.csv", means(**columns)), **options)
    assert (found.decision.rank, found.decision.metric) == (16, "loss")
    groups = found.evidence.groupby("rank")["loss"]
    np.testing.assert_allclose(groups.mean(), list(MEANS.values()), rtol=1e-12)
    np.testing.assert_allclose(groups.std(), 0.003, rtol=1e-9)
    assert groups.size().tolist() == [5] * 4
    assert any("over 5 seeds: as many stand-ins" in note for note in found.notes)


def test_the_decision_is_that_of_the_unpaired_seeds(tmp_path: Path) -> None:
    """A mean, a standard deviation and n say all that unpaired seeds do."""
    table = runs(seeds=4).rename(columns={"lora_r": "rank", "eval_loss": "loss"})
    table["seed"] = range(len(table))  # no seed is shared
    of_seeds = select(table)
    published = table.groupby("rank")["loss"].agg(["mean", "std", "count"]).reset_index()
    published.columns = ["rank", "eval_loss", "std", "n_seeds"]
    of_means = analyze(save_table(tmp_path / "a.csv", published)).decision
    assert (of_means.rank, of_means.answer) == (of_seeds.rank, of_seeds.answer)
    for row, other in zip(of_means.table, of_seeds.table, strict=True):
        assert row.loss_mean == pytest.approx(other.loss_mean)
        assert row.worst_difference == pytest.approx(other.worst_difference)


def test_a_spread_of_an_unknown_kind_is_asked_about_and_the_advice_works(tmp_path: Path) -> None:
    text = [f"{100 - 20 * mean:.2f} ± 0.06" for mean in MEANS.values()]
    path = save_table(tmp_path / "a.csv", pd.DataFrame({"rank": list(MEANS), "accuracy": text}))
    line = refused(path)
    assert "'81.6 ± 0.06' is a spread, and nothing says what it is over" in line
    for option in (
        "--seeds-per-mean (seeds_per_mean)",
        "--spread seeds (spread)",
        "--spread examples",
    ):
        assert option in line
    assert analyze(path, seeds_per_mean=3).decision.rank == 8
    noisy = analyze(path, spread="seeds")
    assert any(
        "taken as the noise of one trial (0.06 for accuracy)" in note for note in noisy.notes
    )
    assert noisy.as_dict() == {**analyze(path, noise=0.06).as_dict(), "notes": list(noisy.notes)}
    over_examples = analyze(path, spread="examples")
    assert any("is not used: it is over examples" in note for note in over_examples.notes)
    column = save_table(tmp_path / "b.csv", means(std=0.003))
    assert "'std' is a spread, and nothing says what it is over" in refused(column)
    assert "leave out spread" in refused(column, spread="examples", seeds_per_mean=3)


def test_spreads_that_are_not_needed_are_left_out_with_a_note(tmp_path: Path) -> None:
    seeds = save_table(tmp_path / "a.csv", runs().assign(eval_loss_std=0.2))
    found = analyze(seeds)
    assert found.decision.rank == 16
    assert "a.csv: 'eval_loss_std' is not used: each row is a single seed" in found.notes
    stated = analyze(save_table(tmp_path / "b.csv", means(std=0.2)), noise=0.001)
    assert "b.csv: 'std' is not used: the noise is stated" in stated.notes
    errors = analyze(save_table(tmp_path / "c.csv", means(eval_loss_stderr=0.2)))
    assert any("'eval_loss_stderr' is not used: nothing says" in note for note in errors.notes)
    plain = analyze(save_table(tmp_path / "d.csv", runs()), seeds_per_mean=3)
    assert "d.csv: no spread of means was found; none is used" in plain.notes


def test_a_metric_without_a_spread_is_left_out_beside_one_that_has_it(tmp_path: Path) -> None:
    table = means(eval_loss_std=0.003, n_seeds=5, accuracy=[0.1, 0.2, 0.3, 0.9])
    found = analyze(save_table(tmp_path / "a.csv", table))
    assert (found.decision.rank, found.score) == (16, None)
    assert any("left out accuracy, whose spread is not known" in note for note in found.notes)
    gap = means(std=[0.003, None, 0.003, 0.003], n_seeds=5)
    assert "'std' is missing in row 2; fill it in" in refused(save_table(tmp_path / "b.csv", gap))


def test_a_mean_without_a_metric_may_be_named(tmp_path: Path) -> None:
    table = means(std=0.003, n_seeds=5).rename(columns={"eval_loss": "mean"})
    path = save_table(tmp_path / "a.csv", table)
    assert "or say which metric 'mean' is, such as --metric eval_loss" in refused(path)
    found = analyze(path, metric="eval_loss")
    assert (found.decision.rank, found.decision.metric, found.decision.margin) == (16, "loss", 0.02)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_stand_ins_have_the_stated_mean_and_deviation(count: int) -> None:
    values = stand_ins(54.0, 0.4, count)
    assert (len(values), values.mean(), values.std(ddof=1)) == (
        count,
        pytest.approx(54),
        pytest.approx(0.4),
    )
    assert stand_ins(54.0, float("nan"), 1).tolist() == [54.0]
