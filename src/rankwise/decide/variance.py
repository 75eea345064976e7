"""Variance of a mean over seeds and examples: crossed random effects, and critical values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from rankwise.decide.decision import Interval

LEAST_EXAMPLES = 20  # fewer held-out examples do not show how much examples vary


def weighted_half_width(
    parts: Sequence[tuple[float, float]], critical: Callable[[float], float]
) -> float:
    """Return the distance of a bound from a mean whose variance is a sum of parts.

    The distance is the parts' critical values, weighted by the parts, times the standard error
    (Cochran and Cox 1957, section 4.14). Satterthwaite's single number of degrees of freedom is
    itself uncertain if a part has only one or two, and the bound then holds too seldom.

    Args:
        parts: (variance of the mean, degrees of freedom); parts without variance do not count.
        critical: function from degrees of freedom to a critical value.
    """
    total = sum(variance for variance, _ in parts)
    if not 0 < total < np.inf:
        return total
    weighted = sum(variance * critical(df) for variance, df in parts if variance > 0)
    return weighted / float(np.sqrt(total))


def interval_around(
    mean: float, parts: Sequence[tuple[float, float]], confidence: float
) -> Interval:
    """Return the two-sided interval of such a mean, with Student's critical values."""
    half = weighted_half_width(parts, lambda df: float(scipy.stats.t.ppf((1 + confidence) / 2, df)))
    return (mean - half, mean + half)


@dataclass(frozen=True)
class Spread:
    """The variance of a mean, in two parts, each with its degrees of freedom (``_df``).

    Attributes:
        seeds: part due to seeds, divided by their number; infinite if nothing is known about it.
        examples: part due to examples, divided by their number.
        rest: the share of ``seeds`` due to seed and example together; it falls with more of either.
    """

    seeds: float
    seeds_df: float
    examples: float
    examples_df: float
    rest: float = 0.0

    @property
    def parts(self) -> list[tuple[float, float]]:
        """Both parts, each with its degrees of freedom."""
        return [(self.seeds, self.seeds_df), (self.examples, self.examples_df)]

    def half_width(self, critical: Callable[[float], float]) -> float:
        """Return the distance of a bound from the mean, for a function of critical values."""
        return weighted_half_width(self.parts, critical)

    def interval(self, mean: float, confidence: float) -> Interval:
        """Return the two-sided interval of a mean with this spread."""
        return interval_around(mean, self.parts, confidence)

    def scaled(self, seeds: float, examples: float, seeds_df: float) -> "Spread":
        """Return the variance at this many times the seeds and examples."""
        rest = min(self.rest, self.seeds)
        return Spread(
            seeds=(self.seeds - rest + rest / examples) / seeds,
            seeds_df=seeds_df,
            examples=self.examples / examples,
            examples_df=self.examples_df * examples,
            rest=rest / examples / seeds,
        )


@dataclass(frozen=True)
class SeedVariance:
    """Variance of one trial's mean over seeds, in a two-way layout of ranks and seeds.

    Attributes:
        own: effect of a seed on one rank alone; it remains in paired differences.
        shared: effect of a seed on all ranks alike; it cancels in paired differences.
        within: variance over each rank's seeds, pooled over ranks: the sum of both effects.
    """

    own: float
    own_df: float
    shared: float
    shared_df: float
    within: float
    within_df: float


NOTHING_KNOWN = SeedVariance(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
FIXED_SEEDS = SeedVariance(0.0, np.inf, 0.0, np.inf, 0.0, np.inf)  # seeds that are not random


def stated_variance(noise: float) -> SeedVariance:
    """Return the variance for a standard deviation that is known from elsewhere."""
    return SeedVariance(noise**2, np.inf, 0.0, np.inf, noise**2, np.inf)


def seed_variance(means: np.ndarray) -> SeedVariance:
    """Split the variance of trial means over seeds into its effects.

    The model is additive in rank and seed, without replication; the residual is a rank's own
    effect. Within a rank both effects add up, so the excess of the pooled variance within ranks is
    the shared effect (Searle, Casella and McCulloch 1992, chapter 4).

    Args:
        means: mean of each trial, (R, S); NaN where a rank lacks a seed.
    """
    present = np.isfinite(means)
    counts = present.sum(1)  # (R,)
    within_df = int((counts - 1).clip(min=0).sum())
    if not within_df:
        return NOTHING_KNOWN
    rank_means = np.where(present, means, 0.0).sum(1) / counts.clip(min=1)  # (R,)
    within = float((np.where(present, means - rank_means[:, None], 0.0) ** 2).sum() / within_df)

    rows, columns = np.nonzero(present)
    design = np.zeros((len(rows), sum(means.shape)))  # (cells, R + S)
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), means.shape[0] + columns] = 1.0
    cells = means[rows, columns]
    fit, _, parameters, _ = np.linalg.lstsq(design, cells, rcond=None)
    own_df = len(cells) - int(parameters)
    if own_df < 1:  # too few common seeds to separate the effects
        return SeedVariance(within, within_df, 0.0, 0.0, within, within_df)
    own = float(((cells - design @ fit) ** 2).sum() / own_df)
    if own <= (1e-12 * np.abs(cells).max()) ** 2:  # rounding in the fit
        own = 0.0
    return SeedVariance(
        own, own_df, max(0.0, within - own), int(counts.max()) - 1, within, within_df
    )


def mean_interval(values: np.ndarray, seeds: SeedVariance, confidence: float) -> Interval:
    """Return the two-sided interval of one rank's mean over seeds and examples.

    The mean's variance has three parts: the seeds' own effect, their shared effect, and examples.

    Args:
        values: values of one rank, (S, N).
        seeds: variance over seeds, estimated from all ranks together.
        confidence: between 0 and 1.
    """
    # A small shared part lends its degrees of freedom to the rank's own part.
    own_df = seeds.own_df + seeds.shared_df
    examples, rest = example_variance(values)
    own, shared = seeds.own / len(values), seeds.shared / len(values)
    parts = [
        # Seeds whose means happen to agree still carry the joint effect of seed and example.
        (max(own, rest - shared), own_df),
        (shared, seeds.shared_df),
        (examples, values.shape[1] - 1),
    ]
    return interval_around(float(values.mean()), parts, confidence)


def example_variance(values: np.ndarray) -> tuple[float, float]:
    """Return the parts of the variance of ``values.mean()`` due to examples and to the rest.

    Two-way random effects: value = mean + seed + example + rest. The mean square between examples
    includes the rest, which is subtracted (Searle, Casella and McCulloch 1992, chapter 4).

    Args:
        values: one value per seed and example, (S, N).

    Returns:
        ``sigma_example^2 / N``, never negative, and ``sigma_rest^2 / (S N)``. With a single seed
        the former includes the latter.
    """
    seeds, examples = values.shape
    if examples < 2:
        return 0.0, 0.0
    by_example = values.mean(0)  # (N,)
    between = float(by_example.var(ddof=1))  # sigma_example^2 + sigma_rest^2 / S
    if seeds < 2:
        return between / examples, 0.0
    left = values - by_example - values.mean(1, keepdims=True) + values.mean()  # (S, N)
    rest = float((left**2).sum()) / ((seeds - 1) * (examples - 1)) / seeds
    return max(0.0, between - rest) / examples, rest / examples
