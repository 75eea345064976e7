"""How far a mean over seeds and examples may be off: crossed random effects, Dunnett's critical value."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from rankwise.decide.decision import Interval


@dataclass(frozen=True)
class Spread:
    """The variance of a mean, in its two parts.

    Attributes:
        seeds: part due to seeds, already divided by their number; infinite where nothing is known about it.
        seeds_df: degrees of freedom behind it; 0 where one seed says nothing about it.
        examples: part due to examples, already divided by their number.
        examples_df: degrees of freedom behind it.
    """

    seeds: float
    seeds_df: float
    examples: float
    examples_df: float

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(self.seeds + self.examples))

    @property
    def df(self) -> float:
        """Degrees of freedom of the sum (Satterthwaite 1946); infinite where nothing varies."""
        total = self.seeds + self.examples
        if total <= 0 or not np.isfinite(total):
            return np.inf
        parts = self.examples**2 / self.examples_df if self.examples_df else 0.0
        if self.seeds_df:
            parts += self.seeds**2 / self.seeds_df
        return total**2 / parts if parts > 0 else np.inf

    def interval(self, mean: float, confidence: float) -> Interval:
        """Return the two-sided interval of a mean with this spread."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.df)) * self.error
        return (mean - half, mean + half)

    def scaled(self, seeds: float, examples: float) -> "Spread":
        """Return what it would be with so many times the seeds and so many times the examples."""
        return Spread(self.seeds / seeds, self.seeds_df * seeds, self.examples / examples, self.examples_df * examples)


@dataclass(frozen=True)
class SeedVariance:
    """How much one trial's mean varies with its seed.

    Attributes:
        interaction: beyond what the seed does to all ranks alike: what is left in paired differences.
        interaction_df: degrees of freedom behind it, 0 where there are none.
        total: what the seed does to all ranks alike included: what a single rank's mean is subject to.
        total_df: degrees of freedom behind it.
    """

    interaction: float
    interaction_df: float
    total: float
    total_df: float


def seed_variance(means: np.ndarray) -> SeedVariance:
    """Split the variance of trial means over seeds, pooled over ranks.

    Two-way layout, rank x seed, without replication. In the balanced case the total is
    ``MS_seed / R + (1 - 1/R) MS_interaction``, so its degrees of freedom follow from those two (Satterthwaite 1946):
    ``R (S - 1)`` where seeds do nothing to all ranks alike, and only ``S - 1`` where that is all they do.

    Args:
        means: mean of each trial, (R, S), NaN where a rank lacks a seed.
    """
    present = np.isfinite(means)
    rows, columns = np.nonzero(present)
    if not len(rows):
        return SeedVariance(0.0, 0.0, 0.0, 0.0)
    design = np.zeros((len(rows), sum(means.shape)))  # (cells, R + S): additive in rank and seed
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), means.shape[0] + columns] = 1.0
    cells = means[rows, columns]
    fit, _, parameters, _ = np.linalg.lstsq(design, cells, rcond=None)
    interaction_df = len(cells) - int(parameters)
    interaction = float(((cells - design @ fit) ** 2).sum() / interaction_df) if interaction_df > 0 else 0.0

    counts = present.sum(1)  # (R,)
    within_df = int((counts - 1).clip(min=0).sum())
    if not within_df:
        return SeedVariance(interaction, max(0, interaction_df), 0.0, 0.0)
    centred = np.where(present, means - np.nanmean(np.where(present, means, np.nan), axis=1, keepdims=True), 0.0)
    total = float((centred**2).sum() / within_df)
    if interaction_df < 1:  # too few seeds in common to tell the two apart: the total is the larger
        return SeedVariance(total, within_df, total, within_df)
    own = (1 - 1 / len(means)) * interaction
    shared = max(0.0, total - own)
    parts = shared**2 / max(1, int(counts.max()) - 1) + own**2 / interaction_df
    return SeedVariance(interaction, interaction_df, total, (shared + own) ** 2 / parts if parts > 0 else within_df)


def example_variance(values: np.ndarray) -> float:
    """Return the part of the variance of ``values.mean()`` that is due to examples.

    Two-way random effects: value = mean + seed + example + rest. The mean square between examples holds the rest
    as well, which belongs to no example and is taken off (Searle, Casella and McCulloch 1992, chapter 4).

    Args:
        values: one figure per seed and example, (S, N).

    Returns:
        ``sigma_example^2 / N``, never negative.
    """
    seeds, examples = values.shape
    if examples < 2:
        return 0.0
    by_example = values.mean(0)  # (N,)
    between = by_example.var(ddof=1)  # sigma_example^2 + sigma_rest^2 / S
    if seeds > 1:
        rest = values - by_example - values.mean(1, keepdims=True) + values.mean()  # (S, N)
        between -= (rest**2).sum() / ((seeds - 1) * (examples - 1)) / seeds
    return max(0.0, float(between)) / examples


def interval_over_examples(values: np.ndarray, confidence: float) -> Interval:
    """Return the two-sided interval of a mean over examples, (N,), of one trained adapter."""
    spread = Spread(0.0, 0.0, example_variance(values[None]), len(values) - 1)
    return spread.interval(float(values.mean()), confidence)


@lru_cache(maxsize=4096)
def dunnett_critical(comparisons: int, df: float, confidence: float) -> float:
    """Return the one-sided critical value for comparing several means with one (Dunnett 1955).

    The value c for which the largest of ``comparisons`` t statistics that share the mean they are compared with
    (so any two correlate with 1/2) stays below c with probability ``confidence``.

    Args:
        comparisons: how many, at least 1.
        df: degrees of freedom of the shared variance estimate; may be infinite.
        confidence: between 0 and 1.
    """
    nodes, weights = special.roots_hermitenorm(64)  # integrates against exp(-x^2 / 2)
    weights = weights / np.sqrt(2 * np.pi)
    if np.isfinite(df) and df < 1e5:
        # sqrt(chi^2 / df), by quantiles at the midpoints of equal shares
        shares = (np.arange(2000) + 0.5) / 2000
        scales = np.sqrt(stats.chi2.ppf(shares, df) / df)
    else:
        scales = np.ones(1)

    def excess(c: float) -> float:
        # T_i <= c  <=>  Z_i <= sqrt(2) c s + Z_0, independent given Z_0 and s
        inner = special.ndtr(np.sqrt(2) * c * scales[:, None] + nodes) ** comparisons  # (scales, nodes)
        return float((inner @ weights).mean()) - confidence

    low, high = -10.0, 10.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, low, high, xtol=1e-6))
