"""Which ranks are cleared: held to closed tests over all subsets, and to a known truth."""

from itertools import combinations

import numpy as np
import pytest

from rankwise.decide.clearing import Clearing, Pairs, step_down
from rankwise.decide.critical import dunnett_critical
from rankwise.decide.pairwise import Comparison
from tests.decide.examples import RANKS, make_losses


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
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
        bounds = Clearing([comparison]).bounds(0.95)
        wrong += min(bounds[rank].upper for rank in RANKS[: ranks - 1]) <= 0.02
    # 5 % and two Monte Carlo standard errors
    assert wrong / replications <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / replications)


def compared(losses: list[float], rng: int, **sizes: float) -> Comparison:
    generator = np.random.default_rng(rng)
    values = make_losses(losses, generator=generator, **sizes)
    ranks = [2 ** (power + 1) for power in range(len(losses))]
    seeds = tuple(range(values.shape[1]))
    return Comparison(dict(zip(ranks, values, strict=True)), dict.fromkeys(ranks, seeds))


def closed_test(comparison: Comparison, rank: int, margin: float) -> bool:
    """Whether every set of ranks that holds this one is rejected, whichever rank is the best."""
    for best in comparison.others(rank):
        rest = [one for one in comparison.ranks if one not in (rank, best)]
        for size in range(len(rest) + 1):
            for others in combinations(rest, size):
                uppers = [
                    comparison.difference(one, best).upper(size + 1, 0.95)
                    for one in (rank, *others)
                ]
                if min(uppers) > margin:
                    return False
    return True


@pytest.mark.parametrize("rng", range(6))
def test_the_steps_clear_the_ranks_that_the_closed_test_clears(rng: int) -> None:
    comparison = compared([0.53, 0.51, 0.5, 0.5, 0.505], rng, seeds=3, seed_noise=0.008)
    bounds = Clearing([comparison]).bounds(0.95)
    for margin in (0.005, 0.01, 0.02, 0.03, 0.05):
        for rank, bound in bounds.items():
            assert (bound.upper <= margin) == closed_test(comparison, rank, margin)


def test_bounds_lie_between_the_single_comparison_and_all_at_once() -> None:
    comparison = compared([0.52, 0.5, 0.5, 0.5], 0, seeds=2)
    for rank, bound in Clearing([comparison]).bounds(0.95).items():
        pairs = [comparison.difference(rank, other) for other in comparison.others(rank)]
        single = max(pair.upper(1, 0.95) for pair in pairs)
        at_once = max(pair.upper(3, 0.95) for pair in pairs)
        assert single <= bound.upper <= at_once


def test_known_noise_gives_dunnetts_bound_for_the_one_rank_that_may_be_best() -> None:
    means = np.array([[0.0, 0.1], [-0.1, 0.0]])
    widths = np.full((1, 2, 2), dunnett_critical(1, np.inf, 0.95) * 0.01)
    assert step_down(means, widths)[0, 1] == pytest.approx(0.1 + 0.0164485, abs=1e-6)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.04])
def test_the_confidence_is_the_highest_that_clears_a_rank(margin: float) -> None:
    clearing = Clearing([compared([0.53, 0.51, 0.5, 0.5], 1, seeds=3)])
    for rank, confidence in clearing.confidences(margin).items():
        if 0.02 < confidence < 0.98:
            assert clearing.bounds(confidence - 0.01)[rank].upper <= margin
            assert clearing.bounds(confidence + 0.01)[rank].upper > margin


def test_every_seed_must_clear_a_rank_whose_adapters_are_asked_for_themselves() -> None:
    values = {
        rank: losses
        for rank, losses in zip(RANKS[:2], make_losses([0.5, 0.5], seeds=2), strict=True)
    }
    values[4][1] += 0.1  # the second seed's truncation loses, the first one's does not
    comparison = Comparison(values, {4: (0, 1), 8: (0, 1)})
    first, second = comparison.by_seed()
    assert Clearing([first]).bounds(0.95)[4].upper <= 0.05
    together = Clearing([first, second]).bounds(0.95)[4].upper
    assert together == Clearing([second]).bounds(0.95)[4].upper > 0.05


def test_pairs_use_the_lower_of_the_bounds_that_a_pair_may_rest_on() -> None:
    comparison = compared([0.5, 0.5, 0.5], 2, seeds=2)
    pairs = Pairs(comparison.ranks, comparison.differences())
    widths = pairs.half_widths(0.95)[0]  # (M, R, R)
    pair = comparison.difference(2, 4)
    for m in (1, 2):
        assert pair.mean + widths[m - 1, 0, 1] == pytest.approx(pair.upper(m, 0.95))
