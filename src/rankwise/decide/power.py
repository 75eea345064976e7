"""What would settle an open question, and what the evidence could have seen."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from rankwise.decide.decision import Next
from rankwise.decide.pairwise import Comparison, Difference

MOST_SEEDS = 32  # the most that a suggestion asks for
MOST_EXAMPLES = 64  # times the held-out examples there are
POWER = 0.8


def next_step(costs: Comparison, margin: float, confidence: float) -> Next | None:
    """Find the fewest seeds, or else seeds and examples, with which a rank would be selected as things look now.

    With a chance of `POWER`, as in `detectable_difference`: a bound that just reaches the margin would do so only every
    other time.

    Returns:
        None where nothing within `MOST_SEEDS` and `MOST_EXAMPLES` would do.
    """
    if len(costs.ranks) < 2:
        return None
    examples_now = costs.values[costs.ranks[0]].shape[1]
    for seeds, times in _steps(
        max(len(costs.seeds[rank]) for rank in costs.ranks), examples_now > 1
    ):
        for rank in costs.ranks:
            others = [other for other in costs.ranks if other != rank]
            pairs = [_scaled(costs.difference(rank, other), seeds, times) for other in others]
            if all(
                pair.upper(len(others), confidence) + pair.spread.half_width(_chance) <= margin
                for pair in pairs
            ):
                examples = int(examples_now * times)
                more = f" and {examples} held-out examples" if times > 1 else ""
                chosen = f"rank {rank} or a smaller one"
                advice = (
                    f"{seeds} seeds per rank{more} would select {chosen} in four cases of five, if the differences "
                    "seen persist."
                )
                return Next(
                    seeds=seeds,
                    held_out_examples=examples,
                    rank=rank,
                    estimated_seconds=None,
                    advice=advice,
                )
    return None


def _steps(seeds_now: int, per_example: bool) -> Iterator[tuple[int, float]]:
    """Yield (seeds, times the examples), the cheaper first: more seeds need no new data."""
    for times in (
        [2.0**power for power in range(int(np.log2(MOST_EXAMPLES)) + 1)] if per_example else [1.0]
    ):
        # One seed says nothing of how much seeds vary: a second comes before any sum.
        for seeds in range(max(2, seeds_now), MOST_SEEDS + 1):
            if seeds > seeds_now or times > 1:
                yield seeds, times


def _scaled(pair: Difference, seeds: int, times_examples: float) -> Difference:
    df = pair.spread.seeds_df
    if pair.seeds > 1:  # each seed after the first adds as many
        df *= (seeds - 1) / (pair.seeds - 1)
    return Difference(pair.mean, pair.spread.scaled(seeds / pair.seeds, times_examples, df), seeds)


def detectable_difference(costs: Comparison, confidence: float) -> float | None:
    """Return the smallest margin at which this evidence would have cleared a rank that equals the best.

    With a chance of `POWER`, for the pair of ranks that is known least well: its bound's distance, and Student's t.

    Returns:
        In units of the metric; None where nothing tells how far a mean may be off.
    """
    pairs = [
        costs.difference(one, other) for one in costs.ranks for other in costs.ranks if one < other
    ]
    if not pairs or not costs.noise_is_known:
        return None
    widths = [
        pair.upper(len(costs.ranks) - 1, confidence) - pair.mean + pair.spread.half_width(_chance)
        for pair in pairs
    ]
    return float(max(widths))


def _chance(df: float) -> float:
    """Return Student's t that a mean stays below with a chance of `POWER`."""
    return float(stats.t.ppf(POWER, df))
