"""Pairwise comparison of ranks over the seeds and held-out examples that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np

from rankwise.decide.critical import dunnett_critical
from rankwise.decide.decision import Interval
from rankwise.decide.evidence import RankResults
from rankwise.decide.seed_prior import SeedPrior
from rankwise.decide.variance import (
    FIXED_SEEDS,
    SeedVariance,
    Spread,
    example_variance,
    mean_interval,
    seed_variance,
    stated_variance,
)


@dataclass(frozen=True)
class Difference:
    """Mean of one rank's values minus the mean of another's.

    Attributes:
        mean: over the seeds that both ranks have, or over all seeds of each if they share none.
        spread: variance of the mean.
        seeds: number of seeds behind it.
        moderated: the variance with a seeds' part moderated by a prior; None without a prior.
    """

    mean: float
    spread: Spread
    seeds: int
    moderated: Spread | None = None

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """The variances that a bound may rest on; the one that gives the lower bound counts.

        A prior may shorten a bound, and never lengthens it: where the seeds of a sweep themselves
        show that they matter little, that stands.
        """
        return (self.spread,) if self.moderated is None else (self.spread, self.moderated)

    def interval(self, confidence: float) -> Interval:
        """Return the two-sided interval for this one comparison."""
        return self.spread.interval(self.mean, confidence)

    def upper(self, comparisons: int, confidence: float) -> float:
        """Return the upper bound, simultaneous over this many comparisons with the same rank."""

        def critical(df: float) -> float:
            # Two digits of the degrees of freedom suffice, and make the cached values reusable.
            return dunnett_critical(comparisons, float(f"{df:.2g}"), confidence)

        return self.mean + min(spread.half_width(critical) for spread in self.spreads)


class Comparison:
    """All ranks compared pair by pair in one kind of values; each pair is computed once.

    Args:
        values: values of each rank, (S, N); ranks ascending.
        seeds: seeds of each rank, (S,).
        noise: standard deviation over seeds of one trial's mean, if known from elsewhere; it
            replaces the estimate from these seeds.
        prior: how much seeds matter elsewhere, if the values are losses.
        fixed_seeds: whether the adapters of these seeds are asked about, and no trainings to come,
            so that examples alone are random.
    """

    def __init__(
        self,
        values: Mapping[int, np.ndarray],
        seeds: Mapping[int, Sequence[int]],
        noise: float | None = None,
        prior: SeedPrior | None = None,
        fixed_seeds: bool = False,
    ) -> None:
        self.values = values
        self.seeds = seeds
        self.fixed_seeds = fixed_seeds
        self.ranks = list(values)
        self.variance = self._variance(noise)
        self._prior = prior if self.variance.own_df and np.isfinite(self.variance.own_df) else None
        self._pairs: dict[tuple[int, int], Difference] = {}

    def _variance(self, noise: float | None) -> SeedVariance:
        if self.fixed_seeds:
            return FIXED_SEEDS
        if noise is not None:
            return stated_variance(noise)
        all_seeds = sorted({seed for rank in self.ranks for seed in self.seeds[rank]})
        means = np.full((len(self.ranks), len(all_seeds)), np.nan)  # (R, S)
        for row, rank in enumerate(self.ranks):
            means[row, np.searchsorted(all_seeds, self.seeds[rank])] = self.values[rank].mean(1)
        return seed_variance(means)

    def by_seed(self) -> "list[Comparison]":
        """Return a comparison of the adapters of each seed alone, over examples."""
        all_seeds = sorted({seed for rank in self.ranks for seed in self.seeds[rank]})
        comparisons = []
        for seed in all_seeds:
            ranks = [rank for rank in self.ranks if seed in self.seeds[rank]]
            rows = {rank: list(self.seeds[rank]).index(seed) for rank in ranks}
            values = {rank: self.values[rank][[rows[rank]]] for rank in ranks}  # (1, N) each
            comparisons.append(Comparison(values, dict.fromkeys(ranks, (seed,)), fixed_seeds=True))
        return comparisons

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
            self._pairs[other, rank] = replace(pair, mean=-pair.mean)
        return self._pairs[rank, other]

    def differences(self) -> dict[tuple[int, int], Difference]:
        """Return the difference of each ordered pair of ranks."""
        return {pair: self.difference(*pair) for pair in permutations(self.ranks, 2)}

    def is_shown_worse(self, rank: int, margin: float, confidence: float) -> bool:
        """Whether a rank's mean is shown to be above another's by more than the margin.

        It is the converse of being within the margin: one rank against all others.
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
        if self.fixed_seeds:
            difference = difference.mean(0, keepdims=True)  # (1, N)
        examples, rest = example_variance(difference)
        pairs = len(shared) or min(len(first), len(second))

        def spread(seeds: float, df: float) -> Spread:
            # Seeds whose means happen to agree still carry the joint effect of seed and example.
            return Spread(max(seeds, rest), df, examples, difference.shape[1] - 1, rest)

        moderated = None
        if self._prior is not None and shared:
            loss = float(np.mean([self.values[one].mean() for one in self.ranks]))
            own, own_df = self._prior.moderate(self.variance.own, self.variance.own_df, loss)
            moderated = spread(2 * own / len(shared), own_df)
        return Difference(float(difference.mean()), spread(seeds, df), pairs, moderated)


def compare(
    results: Sequence[RankResults],
    what: Literal["cost", "loss", "score"],
    noise: float | None = None,
    prior: SeedPrior | None = None,
    fixed_seeds: bool = False,
) -> Comparison | None:
    """Compare ranks by the metric compared, the losses or the scores; None without values."""
    values = {one.rank: getattr(one, what) for one in results}
    if any(value is None for value in values.values()):
        return None
    seeds = {one.rank: one.seeds for one in results}
    return Comparison(values, seeds, noise, prior, fixed_seeds)
