"""Pairwise comparison of ranks over the seeds and held-out examples that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rankwise.decide.decision import Interval
from rankwise.decide.evidence import RankResults
from rankwise.decide.variance import (
    Spread,
    dunnett_critical,
    example_variance,
    mean_interval,
    seed_variance,
    stated_variance,
)


class Bound(NamedTuple):
    """Upper bound of how much worse a rank is than the best other, and the rank that sets it."""

    upper: float
    against: int


@dataclass(frozen=True)
class Difference:
    """Mean of one rank's values minus the mean of another's.

    Attributes:
        mean: over the seeds that both ranks have, or over all seeds of each if they share none.
        spread: variance of the mean.
        seeds: number of seeds behind it.
    """

    mean: float
    spread: Spread
    seeds: int

    def interval(self, confidence: float) -> Interval:
        """Return the two-sided interval for this one comparison."""
        return self.spread.interval(self.mean, confidence)

    def upper(self, comparisons: int, confidence: float) -> float:
        """Return the upper bound, simultaneous over this many comparisons with the same rank."""
        # Two digits of the degrees of freedom suffice, and make the cached values reusable.
        return self.mean + self.spread.half_width(
            lambda df: dunnett_critical(comparisons, float(f"{df:.2g}"), confidence)
        )


class Comparison:
    """All ranks compared pair by pair in one kind of values; each pair is computed once.

    Args:
        values: values of each rank, (S, N); ranks ascending.
        seeds: seeds of each rank, (S,).
        noise: standard deviation over seeds of one trial's mean, if known from elsewhere; it
            replaces the estimate from these seeds.
    """

    def __init__(
        self,
        values: Mapping[int, np.ndarray],
        seeds: Mapping[int, Sequence[int]],
        noise: float | None = None,
    ) -> None:
        self.values = values
        self.seeds = seeds
        self.ranks = list(values)
        all_seeds = sorted({seed for rank in self.ranks for seed in seeds[rank]})
        means = np.full((len(self.ranks), len(all_seeds)), np.nan)  # (R, S)
        for row, rank in enumerate(self.ranks):
            means[row, np.searchsorted(all_seeds, seeds[rank])] = values[rank].mean(1)
        self.variance = seed_variance(means) if noise is None else stated_variance(noise)
        self._pairs: dict[tuple[int, int], Difference] = {}

    @property
    def noise_is_known(self) -> bool:
        """Whether a mean's error can be estimated: from seeds, from examples, or as stated."""
        return self.variance.own > 0 or any(values.shape[1] > 1 for values in self.values.values())

    def others(self, rank: int) -> list[int]:
        """Return all ranks but one."""
        return [other for other in self.ranks if other != rank]

    def mean(self, rank: int) -> float:
        """Return one rank's mean over seeds and examples."""
        return float(self.values[rank].mean())

    def mean_interval(self, rank: int, confidence: float) -> Interval:
        """Return the two-sided interval of one rank's mean."""
        return mean_interval(self.values[rank], self.variance, confidence)

    def difference(self, rank: int, other: int) -> Difference:
        """Return one rank's mean minus another's."""
        if (rank, other) not in self._pairs:
            pair = self._difference(rank, other)
            self._pairs[rank, other] = pair
            self._pairs[other, rank] = Difference(-pair.mean, pair.spread, pair.seeds)
        return self._pairs[rank, other]

    def upper_bound(self, rank: int, confidence: float) -> Bound:
        """Return the upper bound of a rank's mean minus the best other rank's.

        The bounds of all ranks hold together: multiple comparisons with the best (Hsu 1984,
        *Ann. Statist.* 12, 1136).
        """
        count = len(self.ranks) - 1
        bounds = [
            Bound(self.difference(rank, other).upper(count, confidence), other)
            for other in self.others(rank)
        ]
        return max(bounds, default=Bound(np.inf, rank))

    def is_shown_worse(self, rank: int, margin: float, confidence: float) -> bool:
        """Whether a rank's mean is shown to be above another's by more than the margin.

        The converse of `upper_bound`, with the same critical value: one rank against all others.
        """
        count = len(self.ranks) - 1
        uppers = [
            self.difference(other, rank).upper(count, confidence) for other in self.others(rank)
        ]
        return min(uppers, default=0.0) < -margin

    def _difference(self, rank: int, other: int) -> Difference:
        first, second = self.values[rank], self.values[other]
        shared = sorted(set(self.seeds[rank]) & set(self.seeds[other]))
        if shared:
            first = first[np.searchsorted(self.seeds[rank], shared)]  # (S, N)
            second = second[np.searchsorted(self.seeds[other], shared)]  # (S, N)
            difference = first - second
            seeds, df = 2 * self.variance.own / len(shared), self.variance.own_df
        else:
            # Without a common seed, what a seed does to all ranks alike does not cancel.
            difference = first.mean(0, keepdims=True) - second.mean(0, keepdims=True)  # (1, N)
            df = self.variance.within_df
            seeds = self.variance.within * (1 / len(first) + 1 / len(second)) if df else np.inf
        examples, rest = example_variance(difference)
        # Seeds whose means happen to agree still carry the joint effect of seed and example.
        spread = Spread(max(seeds, rest), df, examples, difference.shape[1] - 1, rest)
        pairs = len(shared) or min(len(first), len(second))
        return Difference(float(difference.mean()), spread, pairs)


def compare(
    results: Sequence[RankResults],
    what: Literal["cost", "loss", "score"],
    noise: float | None = None,
) -> Comparison | None:
    """Compare ranks by the metric compared, the losses or the scores; None without values."""
    values = {one.rank: getattr(one, what) for one in results}
    if any(value is None for value in values.values()):
        return None
    return Comparison(values, {one.rank: one.seeds for one in results}, noise)
