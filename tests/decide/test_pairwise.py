"""Comparisons of two ranks, held to textbook tests."""

import numpy as np
import pandas as pd
import pytest

from rankwise import select
from rankwise.decide.pairwise import Comparison
from tests.decide.examples import RANKS, make_losses, seeded


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_seeds_do_not_make_a_wrong_choice_more_likely(ranks: int) -> None:
    """Where the one degree of freedom of the seeds makes half of the noise or more."""
    generator = np.random.default_rng(11)
    losses, wrong, replications = [0.5201] * (ranks - 1) + [0.5], 0, 3000
    for _ in range(replications):
        values = make_losses(
            losses, seeds=2, examples=100, seed_noise=0.01, example_noise=0.15, generator=generator
        )
        comparison = Comparison(
            dict(zip(RANKS, values, strict=False)), {rank: (0, 1) for rank in RANKS[:ranks]}
        )
        wrong += (
            min(comparison.upper_bound(rank, 0.95).upper for rank in RANKS[: ranks - 1]) <= 0.02
        )
    # 5 % and two Monte Carlo standard errors
    assert wrong / replications <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / replications)


@pytest.mark.parametrize("seeds", [2, 5])
def test_two_ranks_of_aggregates_equal_a_paired_t_test(seeds: int) -> None:
    from scipy import stats

    table = seeded({4: 0.5, 8: 0.49}, seeds, 0.01, rng=seeds)
    decision = select(table)
    first, second = (table[table["rank"] == rank]["loss"].to_numpy() for rank in (4, 8))
    paired = stats.ttest_rel(first, second)
    upper = (first - second).mean() + stats.t.ppf(0.95, seeds - 1) * stats.sem(first - second)
    assert decision.table[0].worst_difference == pytest.approx(upper, rel=1e-3)
    gain = decision.table[1].gain_over_previous
    assert gain is not None
    assert gain.loss_ci == pytest.approx(tuple(paired.confidence_interval(0.95)), rel=1e-6)


def test_ranks_without_a_common_seed_equal_a_two_sample_t_test() -> None:
    from scipy import stats

    generator = np.random.default_rng(0)
    first, second = generator.normal(0.5, 0.01, 4), generator.normal(0.5, 0.01, 4)
    rows = [{"rank": 4, "seed": seed, "loss": loss} for seed, loss in enumerate(first)]
    rows += [{"rank": 8, "seed": 10 + seed, "loss": loss} for seed, loss in enumerate(second)]
    gain = select(pd.DataFrame(rows)).table[1].gain_over_previous
    assert gain is not None
    expected = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert gain.loss_ci == pytest.approx(tuple(expected), rel=1e-6)
