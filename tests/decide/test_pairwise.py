"""Comparisons of two ranks, held to textbook tests."""

import numpy as np
import pandas as pd
import pytest

from rankwise import select
from rankwise.decide.pairwise import Comparison
from rankwise.decide.seed_prior import SeedPrior
from tests.decide.examples import make_losses, seeded


@pytest.mark.parametrize("seeds", [2, 5])
def test_two_ranks_of_aggregates_equal_a_paired_t_test(seeds: int) -> None:
    from scipy import stats

    table = seeded({4: 0.5, 8: 0.49}, seeds, 0.01, rng=seeds)
    decision = select(table, no_prior=True)
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


def test_a_prior_shortens_a_bound_and_never_lengthens_it() -> None:
    values = dict(zip((4, 8), make_losses([0.5, 0.5], seeds=2, seed_noise=0.01), strict=True))
    seeds = {4: (0, 1), 8: (0, 1)}
    alone = Comparison(values, seeds).difference(4, 8)
    for relative_sd in (1e-4, 0.02, 10.0):
        prior = SeedPrior("test", 2.0, relative_sd)
        moderated = Comparison(values, seeds, prior=prior).difference(4, 8)
        assert moderated.mean == alone.mean
        assert moderated.upper(1, 0.95) <= alone.upper(1, 0.95)
    assert moderated.upper(1, 0.95) == alone.upper(1, 0.95)  # that prior says nothing


def test_the_adapters_of_fixed_seeds_are_compared_over_examples_alone() -> None:
    from scipy import stats

    values = dict(zip((4, 8), make_losses([0.5, 0.5], seeds=2, seed_noise=0.5), strict=True))
    seeds = {4: (0, 1), 8: (0, 1)}
    over_both = Comparison(values, seeds, fixed_seeds=True).difference(4, 8)
    by_example = (values[4] - values[8]).mean(0)
    expected = stats.ttest_1samp(by_example, 0).confidence_interval(0.95)
    assert over_both.interval(0.95) == pytest.approx(tuple(expected))
    for seed, one in enumerate(Comparison(values, seeds).by_seed()):
        paired = stats.ttest_rel(values[4][seed], values[8][seed]).confidence_interval(0.95)
        assert one.difference(4, 8).interval(0.95) == pytest.approx(tuple(paired))
