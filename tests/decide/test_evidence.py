"""Evidence as `select` reads it: types of columns, refusals, the rate that a rank is judged by."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select
from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import read_rank_results
from tests.decide.examples import make_evidence, make_results


def table(**columns: Any) -> pd.DataFrame:
    values = {"rank": [4, 4, 8, 8], "seed": [0, 1, 0, 1], "loss": [0.5, 0.6, 0.4, 0.45]}
    return pd.DataFrame({**values, **columns})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"seed": [0, np.nan, 0, 1]},
            r"seed nan in 1 of 4 rows \(row 1\); allowed are whole numbers",
        ),
        ({"seed": ["a", "b", "a", "b"]}, r"seed 'a', 'b' in 4 of 4 rows"),
        ({"seed": [0, 0.5, 0, 1]}, r"seed 0.5 in 1 of 4 rows \(row 1\)"),
        (
            {"loss": [0.5, "high", 0.4, 0.45]},
            r"loss 'high' in 1 of 4 rows \(row 1\); allowed are finite numbers",
        ),
        (
            {"learning_rate": [1e-3, np.nan, np.nan, 1e-3]},
            r"learning_rate nan in 2 of 4 rows \(row 1, 2\)",
        ),
        ({"learning_rate": -1.0}, r"learning_rate -1.0 in 4 of 4 rows"),
        (
            {"diverged": [False, None, False, False]},
            r"diverged None in 1 of 4 rows \(row 1\); allowed are true and fal",
        ),
        ({"diverged": "perhaps"}, r"diverged 'perhaps' in 4 of 4 rows"),
        ({"example_id": [3, None, 3, 3]}, r"example_id nan in 1 of 4 rows"),
        ({"rank": [4, 4, [8], 8]}, r"rank \[8\] in 1 of 4 rows"),
    ],
)
def test_values_that_no_column_holds(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        select(table(**columns))


@pytest.mark.parametrize(
    "columns",
    [
        {"diverged": "False"},
        {"diverged": 0},
        {"seed": ["0", "1", "0", "1"]},
        {"seed": pd.Series([0, 1, 0, 1], dtype=object).map(np.int64).astype(object)},
        {"loss": ["0.5", "0.6", "0.4", "0.45"]},
    ],
)
def test_values_that_are_written_otherwise(columns: dict[str, Any]) -> None:
    assert select(table(**columns)).as_dict() == select(table()).as_dict()


@pytest.mark.parametrize("way", ["metric", "higher_is_better"])
def test_arguments_of_another_type(way: str) -> None:
    with pytest.raises(RequestError, match=rf"{way} \['loss'\]: allowed is"):
        select(table(), **{way: ["loss"]})  # type: ignore[arg-type]


def test_results_made_directly_equal_those_read_from_a_table() -> None:
    for run, read in zip(
        make_results([0.5] * 4), read_rank_results(make_evidence([0.5] * 4)), strict=True
    ):
        assert (run.rank, run.seeds, run.rates) == (read.rank, read.seeds, read.rates)
        np.testing.assert_array_equal(run.loss, read.loss)
        np.testing.assert_array_equal(run.score, read.score)


def test_rates_that_were_scored_on_other_examples_are_refused() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5])
    better = evidence.assign(learning_rate=2e-3, loss=evidence["loss"] - 0.1)
    both = pd.concat([evidence.assign(learning_rate=1e-3), better[better["example_id"] > 5]])
    with pytest.raises(
        RequestError, match="evidence of rank 4: its learning rates were not scored on the same"
    ):
        select(both)


def test_a_loss_with_higher_is_better_is_refused() -> None:
    with pytest.raises(RequestError, match="higher_is_better true"):
        select(make_evidence([0.5] * 4), higher_is_better=True)
    with pytest.raises(RequestError, match="evidence None: allowed is a pandas DataFrame"):
        select(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.drop(columns="rank"), "lacks the column rank; it has: seed, example_id"),
        (
            lambda e: e.rename(columns={"loss": "los"}),
            r"'loss' is not in the evidence \(did you mean 'los'\?\)",
        ),
        (
            lambda e: e.assign(rank=e["rank"] + 0.5),
            r"rank 4.5, 8.5, 16.5, 32.5 in 6000 of 6000 rows",
        ),
        (lambda e: e[e["rank"] == 4], "holds 1 rank; at least two"),
        (
            lambda e: e.assign(loss=np.where(e.index == 7, np.inf, e["loss"])),
            r"loss inf in 1 of 6000 rows \(row 7\)",
        ),
        (lambda e: pd.concat([e, e.head(1)]), "1 rows repeat"),
        (
            lambda e: e[(e["rank"] != 4) | (e["seed"] != 1) | (e["example_id"] < 100)],
            "rank 4: its seeds were not scored",
        ),
        (
            lambda e: e[(e["rank"] != 4) | (e["example_id"] < 100)],
            "ranks 4 and 8 were not scored on the same",
        ),
    ],
)
def test_unusable_evidence_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError, match=words):
        select(change(make_evidence([0.5, 0.5, 0.5, 0.5])))


class TestBestLearningRate:
    def rates(
        self, losses: dict[float, list[float]], seeds: dict[float, list[int]] | None = None
    ) -> pd.DataFrame:
        rows = [
            {
                "learning_rate": rate,
                "seed": seed,
                "example_id": i,
                "loss": loss,
                "diverged": not np.isfinite(loss),
            }
            for rate, values in losses.items()
            for seed in (seeds or {}).get(rate, [0])
            for i, loss in enumerate(values)
        ]
        return pd.DataFrame(rows)

    def test_the_lowest_loss(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-3: [0.6, 0.7], 2e-3: [0.3, 0.41], 4e-3: [0.5, 0.6]}))
            == 2e-3
        )

    def test_the_smaller_of_two_that_cannot_be_told_apart(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-3: [0.2, 0.9, 0.5], 2e-3: [0.9, 0.1, 0.5]})) == 1e-3
        )

    def test_a_rate_that_diverged_is_out(self) -> None:
        assert best_learning_rate(self.rates({1e-3: [0.6, 0.7], 2e-3: [np.nan]})) == 1e-3
        assert best_learning_rate(self.rates({2e-3: [np.nan]})) is None

    def test_no_higher_rate_that_a_diverged_seed_did_not_try(self) -> None:
        """The second seed diverges at 2e-3; 4e-3 is the best of the first."""
        losses = {1e-3: [0.6, 0.7], 2e-3: [0.5, 0.6], 4e-3: [0.3, 0.4]}
        tried = self.rates(losses, {2e-3: [0, 1]})
        tried["diverged"] = tried["seed"] == 1
        assert best_learning_rate(tried) == 1e-3
        assert best_learning_rate(tried[tried["learning_rate"] > 1e-3]) == 4e-3  # no other is left
        fine = self.rates({4e-3: [0.3, 0.4]}, {4e-3: [1]})
        assert best_learning_rate(pd.concat([tried, fine], ignore_index=True)) == 4e-3

    def test_aggregates_without_a_common_seed_are_judged_by_their_means(self) -> None:
        assert (
            best_learning_rate(self.rates({1e-4: [0.9], 1e-3: [0.5]}, {1e-4: [0], 1e-3: [1]}))
            == 1e-3
        )

    def test_of_rates_that_cannot_be_told_apart_the_one_with_more_seeds(self) -> None:
        alike = {1e-3: [0.5, 0.7], 2e-3: [0.7, 0.5]}
        assert best_learning_rate(self.rates(alike, {1e-3: [0], 2e-3: [0, 1, 2]})) == 2e-3
        assert best_learning_rate(self.rates(alike)) == 1e-3

    def test_a_rate_is_compared_with_the_best_on_all_seeds_that_both_have(self) -> None:
        """The first seed prefers 2e-3, the second does not, and 4e-3 has no second seed."""
        losses = {1e-3: [0.62, 0.63], 2e-3: [0.5, 0.51], 4e-3: [0.7, 0.7]}
        both = self.rates(losses, {1e-3: [0, 1], 2e-3: [0, 1]})
        assert best_learning_rate(both) == 2e-3
        both.loc[(both["seed"] == 1) & (both["learning_rate"] == 2e-3), "loss"] = 0.9
        assert best_learning_rate(both) == 1e-3

    def test_only_seeds_that_every_rate_has_count(self) -> None:
        both = self.rates({1e-3: [0.6, 0.62], 2e-3: [0.5, 0.51]}, {1e-3: [0], 2e-3: [0, 1]})
        both.loc[both["seed"] == 1, "loss"] = 0.9
        assert best_learning_rate(both) == 2e-3
