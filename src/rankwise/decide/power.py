"""Power analysis: what would settle an open question, and which margin the evidence can resolve."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy import stats

from rankwise.decide.decision import Next
from rankwise.decide.pairwise import Comparison, Difference

MOST_SEEDS = 32  # a suggestion asks for no more seeds
MOST_EXAMPLES = 64  # nor for more than this many times the held-out examples
POWER = 0.8


def next_step(comparison: Comparison, margin: float, confidence: float) -> Next | None:
    """Find the fewest seeds, or seeds and examples, that would select a rank.

    If the differences seen persist, they do so with a probability of `POWER`: a bound that just
    reaches the margin on average would pass only every other time.

    Returns:
        The step, without its sentence and its time; None if nothing within `MOST_SEEDS` and
        `MOST_EXAMPLES` would do.
    """
    if len(comparison.ranks) < 2:
        return None
    examples_now = comparison.values[comparison.ranks[0]].shape[1]
    seeds_now = max(len(comparison.seeds[rank]) for rank in comparison.ranks)
    for seeds, times in _steps(seeds_now, examples_now > 1):
        for rank in comparison.ranks:
            others = comparison.others(rank)
            pairs = (_scaled(comparison.difference(rank, other), seeds, times) for other in others)
            if all(_reach(pair, len(others), confidence) <= margin for pair in pairs):
                return Next(seeds=seeds, held_out_examples=int(examples_now * times), rank=rank)
    return None


def detectable_difference(comparison: Comparison, confidence: float) -> float | None:
    """Return the smallest margin at which this evidence would clear a rank that equals the best.

    It would do so with a probability of `POWER`, for the pair of ranks that is known least well:
    the distance of its bound plus Student's quantile. None if the noise is not known.
    """
    ranks = comparison.ranks
    if len(ranks) < 2 or not comparison.noise_is_known:
        return None
    pairs = [comparison.difference(*pair) for pair in combinations(ranks, 2)]
    return max(_reach(pair, len(ranks) - 1, confidence) - pair.mean for pair in pairs)


def _steps(seeds_now: int, per_example: bool) -> Iterator[tuple[int, float]]:
    """Yield (seeds, factor of the examples), the cheaper first: more seeds need no new data."""
    doublings = int(np.log2(MOST_EXAMPLES)) if per_example else 0
    for power in range(doublings + 1):
        times = 2.0**power
        # One seed does not show how much seeds vary, so a second is always part of the advice.
        for seeds in range(max(2, seeds_now), MOST_SEEDS + 1):
            if seeds > seeds_now or times > 1:
                yield seeds, times


def _scaled(pair: Difference, seeds: int, times_examples: float) -> Difference:
    df = pair.spread.seeds_df
    if pair.seeds > 1:  # each seed after the first adds as many degrees of freedom
        df *= (seeds - 1) / (pair.seeds - 1)
    return Difference(pair.mean, pair.spread.scaled(seeds / pair.seeds, times_examples, df), seeds)


def _reach(pair: Difference, comparisons: int, confidence: float) -> float:
    """Return what the upper bound of a difference stays below with a probability of `POWER`."""
    shortfall = pair.spread.half_width(lambda df: float(stats.t.ppf(POWER, df)))
    return pair.upper(comparisons, confidence) + shortfall
