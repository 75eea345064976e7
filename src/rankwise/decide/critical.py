"""Critical values of Dunnett's test, which compares several means with one."""

from functools import lru_cache

import numpy as np
import scipy
from scipy import special

# Confidence levels at which all ranks are judged: quantiles of the normal distribution, evenly
# spaced, from 0.6 % to 99.87 %.
LEVELS = special.ndtr(np.arange(-2.5, 3.1, 0.25))


@lru_cache(maxsize=16384)
def dunnett_critical(comparisons: int, df: float, confidence: float) -> float:
    """Return the one-sided critical value for comparing several means with one (Dunnett 1955).

    The largest of ``comparisons`` t statistics that share one mean (so that any two correlate with
    1/2) stays below it with probability ``confidence``.

    Args:
        comparisons: number of comparisons, at least 1; 1 gives Student's quantile.
        df: degrees of freedom of the shared variance estimate; may be infinite.
        confidence: probability, between 0 and 1.
    """
    # scipy.stats.dunnett needs samples with one error term. Here a variance has two parts, each
    # with its own degrees of freedom, so the critical value itself is needed.
    if comparisons == 1:
        return float(
            special.stdtrit(df, confidence) if np.isfinite(df) else special.ndtri(confidence)
        )
    nodes, weights, scales = _quadrature(df, 400)

    def excess(c: float) -> float:
        # T_i <= c  <=>  Z_i <= sqrt(2) c s + Z_0, independent given Z_0 and s
        inner = special.ndtr(np.sqrt(2) * c * scales[:, None] + nodes) ** comparisons
        # inner: (scales, nodes)
        return float((inner @ weights).mean()) - confidence

    low, high = -10.0, 10.0
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    return float(scipy.optimize.brentq(excess, low, high, xtol=1e-6))


@lru_cache(maxsize=256)
def critical_table(most: int, df: float) -> np.ndarray:
    """Return critical values at each of `LEVELS` for 1 to ``most`` comparisons, (L, most).

    They are interpolated between 200 values whose probability is known, to about three digits.
    """
    nodes, weights, scales = _quadrature(df, 100)
    values = np.sinh(np.linspace(-3.0, 8.0, 200))  # -10 to 1490, densest around 0
    inner = special.ndtr(np.sqrt(2) * values[:, None, None] * scales[:, None] + nodes)
    table = []
    for count in range(1, most + 1):
        shares = (inner**count @ weights).mean(1)  # (200,)
        known = (shares > 1e-9) & (shares < 1 - 1e-9)
        place = scipy.interpolate.PchipInterpolator(special.ndtri(shares[known]), values[known])
        table.append(place(special.ndtri(LEVELS)))
    return np.transpose(table)


@lru_cache(maxsize=256)
def _quadrature(df: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes and weights of a standard normal, and quantiles of sqrt(chi^2 / df)."""
    nodes, weights = special.roots_hermitenorm(48)  # integrates against exp(-x^2 / 2)
    weights = weights / np.sqrt(2 * np.pi)
    if not np.isfinite(df) or df >= 1e5:
        return nodes, weights, np.ones(1)
    shares = (np.arange(count) + 0.5) / count  # midpoints of equal shares
    return nodes, weights, np.sqrt(scipy.stats.chi2.ppf(shares, df) / df)
