import numpy as np
import pytest
from scipy import stats

from rankwise.decide.pairwise import Comparison
from rankwise.decide.variance import (
    NOTHING_KNOWN,
    Spread,
    example_variance,
    mean_interval,
    seed_variance,
)


def test_variance_components_are_those_that_made_the_data() -> None:
    generator = np.random.default_rng(0)
    seeds, examples, repeats = 4, 50, 4000
    sigma_seed, sigma_example, sigma_rest = 0.3, 1.5, 0.8
    means, by_example, rests = [], [], []
    for _ in range(repeats):
        values = (
            sigma_seed * generator.normal(size=(seeds, 1))
            + sigma_example * generator.normal(size=examples)
            + sigma_rest * generator.normal(size=(seeds, examples))
        )
        means.append(values.mean())
        found, left = example_variance(values)
        by_example.append(found)
        rests.append(left)
    assert np.mean(rests) == pytest.approx(sigma_rest**2 / (seeds * examples), rel=0.02)
    truth = sigma_example**2 / examples
    assert np.mean(by_example) == pytest.approx(truth, rel=0.02)
    # What the examples leave of the variance of the mean is the seeds' part.
    expected = truth + sigma_seed**2 / seeds + sigma_rest**2 / (seeds * examples)
    assert np.var(means) == pytest.approx(expected, rel=0.07)


def test_interaction_is_free_of_what_a_seed_does_to_all_ranks() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        means = (
            generator.normal(size=(3, 1))
            + 10 * generator.normal(size=4)
            + 0.2 * generator.normal(size=(3, 4))
        )
        means[2, 3] = np.nan  # a rank with fewer seeds
        found.append(seed_variance(means))
    assert {variance.own_df for variance in found} == {2 * 3 - 1}
    assert np.mean([variance.own for variance in found]) == pytest.approx(0.2**2, rel=0.05)
    assert np.mean([variance.shared for variance in found]) == pytest.approx(10**2, rel=0.05)
    assert np.mean([variance.within for variance in found]) == pytest.approx(
        10**2 + 0.2**2, rel=0.05
    )


@pytest.mark.parametrize(
    ("shared", "seeds"),
    [
        *((0.0, 3), (0.9, 3), (0.3, 5), (1.0, 5)),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [(0.3, 3), (1.0, 3), (0.0, 5), (0.9, 5)]
        ),
    ],
)
def test_the_interval_of_a_rank_covers_its_mean(shared: float, seeds: int) -> None:
    """Whatever share of the seeds' effect is common to all ranks."""
    generator = np.random.default_rng(1)
    covered, replications = 0, 4000
    for _ in range(replications):
        alike = np.sqrt(shared) * generator.normal(size=seeds)
        values = (alike + np.sqrt(1 - shared) * generator.normal(size=(4, seeds)))[
            ..., None
        ]  # (R, S, 1)
        low, high = mean_interval(values[0], seed_variance(values.mean(2)), 0.95)
        covered += low <= 0 <= high
    assert 0.94 <= covered / replications <= 0.975


def test_the_interval_of_one_trial_is_a_t_interval() -> None:
    values = np.random.default_rng(0).exponential(size=(1, 40))
    expected = stats.t.interval(0.9, 39, values.mean(), stats.sem(values[0]))
    assert mean_interval(values, NOTHING_KNOWN, 0.9) == pytest.approx(expected)


def test_equal_means_over_seeds_are_not_certain() -> None:
    """What seed and example do together shows in the examples, and is in the means as well."""
    first = np.array(
        [[0.2, 0.4, 0.6, 0.8], [0.8, 0.6, 0.4, 0.2]]
    )  # (S, N): means equal over seeds and examples
    rest = 4 * (0.3**2 + 0.1**2) / 3 / 8  # of all 8 values, with 3 degrees of freedom
    seeds = seed_variance(np.full((2, 2), 0.5))
    low, high = mean_interval(first, seeds, 0.9)
    # seeds of which nothing is known but that they agree: the two degrees of freedom are what two ranks have
    assert (high - low) / 2 == pytest.approx(np.sqrt(rest) * stats.t.ppf(0.95, 2))
    pair = Comparison({4: first, 8: np.full((2, 4), 0.5)}, {4: (0, 1), 8: (0, 1)}).difference(4, 8)
    assert pair.spread.seeds == pytest.approx(rest)
    assert pair.interval(0.9)[1] == pytest.approx(np.sqrt(rest) * stats.t.ppf(0.95, 1))


def test_one_seed_tells_nothing_of_seeds() -> None:
    assert seed_variance(np.ones((4, 1))) == NOTHING_KNOWN
    values = np.random.default_rng(0).normal(size=(1, 30))
    assert example_variance(values) == (pytest.approx(stats.sem(values[0]) ** 2), 0.0)


def test_seeds_that_ranks_do_not_share_still_count() -> None:
    means = np.array([[1.0, 2.0, 3.0], [1.5, np.nan, np.nan]])
    variance = seed_variance(means)
    assert variance.own == variance.within == pytest.approx(1.0)
    assert variance.own_df == variance.within_df == 2


def test_each_part_has_the_critical_value_of_its_own_degrees_of_freedom() -> None:
    spread = Spread(seeds=1.0, seeds_df=1, examples=3.0, examples_df=99)
    one, many = stats.t.ppf(0.975, 1), stats.t.ppf(0.975, 99)
    half = (1 * one + 3 * many) / 2
    assert spread.interval(5.0, 0.95) == pytest.approx((5 - half, 5 + half))
    # With a single part it is Student's interval; where nothing varies, a point.
    assert Spread(4.0, 1, 0.0, 99).interval(0.0, 0.95)[1] == pytest.approx(2 * one)
    assert Spread(0.0, 0, 3.0, 99).interval(0.0, 0.95)[1] == pytest.approx(np.sqrt(3) * many)
    assert Spread(0.0, 0, 0.0, 99).interval(5.0, 0.95) == (5.0, 5.0)
    assert Spread(np.inf, 0, 3.0, 99).interval(5.0, 0.95) == (-np.inf, np.inf)


def test_more_seeds_and_examples_shrink_what_they_are_behind() -> None:
    spread = Spread(seeds=3.0, seeds_df=2, examples=4.0, examples_df=9, rest=1.0)
    more = spread.scaled(seeds=2, examples=4, seeds_df=5)
    # two of the three parts due to seeds are theirs alone; the third falls with examples too
    assert more.seeds == pytest.approx((2 + 1 / 4) / 2)
    assert more.examples == pytest.approx(1.0)
    assert (more.seeds_df, more.examples_df) == (5, 36)
