"""Ranks compared in pairs, over the seeds and examples that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Difference:
    """Mean of one rank's values minus another's.

    Attributes:
        mean: over the seeds that both have, or over each one's own where they share none.
        spread: how far it may be off.
        seeds: behind it.
    """

    mean: float
    spread: Spread
    seeds: int

    def interval(self, confidence: float) -> Interval:
        """Return the two-sided interval for this one comparison."""
        return self.spread.interval(self.mean, confidence)

    def upper(self, comparisons: int, confidence: float) -> float:
        """Return the upper bound that holds together with those of other comparisons with the same rank."""

        def critical(df: float) -> float:
            # Degrees of freedom to two digits: the critical value does not see more, and its cache does.
            return dunnett_critical(comparisons, float(f"{df:.2g}"), confidence)

        return self.mean + self.spread.half_width(critical)


class Comparison:
    """All ranks' values of one kind, and how they differ.

    Args:
        values: a rank's values, (S, N); ranks ascending.
        seeds: a rank's seeds, (S,).
        noise: standard deviation over seeds of one trial's mean, if it is known from elsewhere; it then stands in for
            what the seeds at hand would say.
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
        every = sorted({seed for rank in self.ranks for seed in seeds[rank]})
        means = np.full((len(self.ranks), len(every)), np.nan)  # (R, S)
        for row, rank in enumerate(self.ranks):
            means[row, np.searchsorted(every, seeds[rank])] = values[rank].mean(1)
        self.variance = seed_variance(means) if noise is None else stated_variance(noise)
        self._pairs: dict[tuple[int, int], Difference] = {}

    @property
    def noise_is_known(self) -> bool:
        """Whether anything tells how far a mean may be off: seeds that differ, several examples, or a stated noise."""
        return self.variance.own > 0 or any(values.shape[1] > 1 for values in self.values.values())

    def mean_interval(self, rank: int, confidence: float) -> Interval:
        """Return the two-sided interval of one rank's mean."""
        return mean_interval(self.values[rank], self.variance, confidence)

    def difference(self, one: int, other: int) -> Difference:
        """Return one rank's mean minus another's."""
        if (one, other) not in self._pairs:
            found = self._difference(one, other)
            self._pairs[one, other] = found
            self._pairs[other, one] = Difference(-found.mean, found.spread, found.seeds)
        return self._pairs[one, other]

    def _difference(self, one: int, other: int) -> Difference:
        first, second = self.values[one], self.values[other]
        shared = sorted(set(self.seeds[one]) & set(self.seeds[other]))
        if shared:
            first, second = (
                self.values[rank][np.searchsorted(self.seeds[rank], shared)]
                for rank in (one, other)
            )  # (S, N) each
            difference = first - second
            seeds, df = 2 * self.variance.own / len(shared), self.variance.own_df
        else:
            # No seed in common: what a seed does to all ranks alike does not cancel.
            difference = first.mean(0, keepdims=True) - second.mean(0, keepdims=True)  # (1, N)
            df = self.variance.within_df
            seeds = self.variance.within * (1 / len(first) + 1 / len(second)) if df else np.inf
        examples, rest = example_variance(difference)
        # Seeds whose means happen to lie close together still hold what seed and example do together.
        spread = Spread(max(seeds, rest), df, examples, difference.shape[1] - 1, rest)
        return Difference(
            float(difference.mean()), spread, len(shared) or min(len(first), len(second))
        )

    def worst(self, rank: int, confidence: float) -> tuple[float, int]:
        """Return the upper bound of a rank's mean minus the best other's, and the rank that sets it.

        The bounds of all ranks hold together: multiple comparisons with the best (Hsu 1984, *Ann. Statist.* 12, 1136).
        """
        others = [other for other in self.ranks if other != rank]
        return max(
            (
                (self.difference(rank, other).upper(len(others), confidence), other)
                for other in others
            ),
            default=(np.inf, rank),
        )

    def is_shown_worse(self, rank: int, margin: float, confidence: float) -> bool:
        """Whether a rank's mean is shown to lie above another's by more than the margin.

        The converse of `worst`, with the same critical value: one rank against all the others.
        """
        others = [other for other in self.ranks if other != rank]
        return any(
            -self.difference(other, rank).upper(len(others), confidence) > margin
            for other in others
        )


def compare(
    runs: Sequence[RankResults], what: Literal["cost", "loss", "score"], noise: float | None = None
) -> Comparison | None:
    """Compare what decides, the losses or the scores; None where there are none."""
    values = {run.rank: getattr(run, what) for run in runs}
    if any(value is None for value in values.values()):
        return None
    return Comparison(values, {run.rank: run.seeds for run in runs}, noise)
