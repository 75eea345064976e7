"""How far a mean over seeds and examples may be off: crossed random effects, Dunnett's critical value."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats


@dataclass(frozen=True)
class Spread:
    """The variance of a mean, in its two parts.

    Attributes:
        seeds: part due to seeds, already divided by their number.
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
        if total <= 0:
            return np.inf
        parts = self.examples**2 / self.examples_df if self.examples_df else 0.0
        if self.seeds_df:
            parts += self.seeds**2 / self.seeds_df
        return total**2 / parts if parts > 0 else np.inf

    def scaled(self, seeds: float, examples: float) -> "Spread":
        """Return what it would be with so many times the seeds and so many times the examples."""
        return Spread(self.seeds / seeds, self.seeds_df * seeds, self.examples / examples, self.examples_df * examples)


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


def interaction_variance(means: np.ndarray) -> tuple[float, float]:
    """Return how much a rank's mean varies with the seed beyond what the seed does to all ranks alike.

    Args:
        means: mean loss of each trial, (R, S), NaN where a rank lacks a seed.

    Returns:
        The variance of one trial's mean, pooled over ranks, and its degrees of freedom (0, 0 where they are none).
    """
    rows, columns = np.nonzero(np.isfinite(means))
    design = np.zeros((len(rows), sum(means.shape)))  # (cells, R + S): additive in rank and seed
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), means.shape[0] + columns] = 1.0
    cells = means[rows, columns]
    fit, _, parameters, _ = np.linalg.lstsq(design, cells, rcond=None)
    df = len(cells) - int(parameters)
    if df < 1:
        return 0.0, 0.0
    return float(((cells - design @ fit) ** 2).sum() / df), float(df)


@lru_cache(maxsize=1024)
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
