"""Which ranks the evidence clears: the step-down comparison of all ranks with the best one.

A rank is cleared if it is shown to be within the margin of every other rank. Let b be the rank that
is truly the best. A rank that is wrong to clear lies beyond the margin above b, so it is enough to
test the others against each b in turn, and to ask of a rank that it passes for every b. Against one
b the tests are Dunnett's in steps (Dunnett and Tamhane 1991, *Stat. Med.* 10, 939): a rank that
passes leaves fewer for the next step, whose critical value is smaller. That is a closed test
(Marcus, Peritz and Gabriel 1976, *Biometrika* 63, 655), so the chance of clearing any wrong rank
stays below the stated level, however many ranks there are and in whatever order they are looked at.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.decide.critical import LEVELS, critical_table, dunnett_critical
from rankwise.decide.pairwise import Comparison, Difference


class Bound(NamedTuple):
    """Upper bound of how much worse a rank is than the best other, and the rank that sets it."""

    upper: float
    against: int


class Pairs:
    """All differences between ranks as matrices, (R, R): row minus column.

    Args:
        ranks: ascending, at least two.
        differences: the difference of each ordered pair.
    """

    def __init__(
        self, ranks: Sequence[int], differences: Mapping[tuple[int, int], Difference]
    ) -> None:
        self.ranks = list(ranks)
        count = len(self.ranks)
        self.means = np.zeros((count, count))
        # The spreads by which a pair may be judged; the one that gives the lower bound counts.
        choices = max(len(pair.spreads) for pair in differences.values())
        self._parts = np.zeros((choices, 4, count, count))
        for (rank, other), pair in differences.items():
            place = self.ranks.index(rank), self.ranks.index(other)
            self.means[place] = pair.mean
            for choice in range(choices):
                spread = pair.spreads[min(choice, len(pair.spreads) - 1)]
                parts = (spread.seeds, spread.seeds_df, spread.examples, spread.examples_df)
                self._parts[(choice, slice(None), *place)] = parts

    def half_widths(self, confidence: float | None = None) -> np.ndarray:
        """Return each bound's distance from the mean for 1, 2, ... comparisons, (L, R - 1, R, R).

        Args:
            confidence: the only level; by default all of `LEVELS`.
        """
        widths = [self._half_widths(parts, confidence) for parts in self._parts]
        return np.min(widths, axis=0)

    def _half_widths(self, parts: np.ndarray, confidence: float | None) -> np.ndarray:
        seeds, seeds_df, examples, examples_df = parts
        total = seeds + examples
        known = np.isfinite(total) & (total > 0)
        root = np.sqrt(np.where(known, total, 1.0))
        # The weighting of the two parts is that of `rankwise.decide.variance.weighted_half_width`.
        width = self._critical(seeds_df, confidence) * np.where(known, seeds, 0.0)
        width = width + self._critical(examples_df, confidence) * np.where(known, examples, 0.0)
        return np.where(known, width / root, np.where(total > 0, np.inf, 0.0))

    def _critical(self, df: np.ndarray, confidence: float | None) -> np.ndarray:
        """Return critical values for each pair's degrees of freedom, (L, R - 1, R, R)."""
        most = len(self.ranks) - 1
        values = np.zeros((1 if confidence is not None else len(LEVELS), most, *df.shape))
        for one in np.unique(df[df > 0]):
            if confidence is None:
                table = critical_table(most, float(f"{one:.2g}"))  # (L, R - 1)
            else:
                counts = range(1, most + 1)
                table = np.array(
                    [[dunnett_critical(m, float(f"{one:.2g}"), confidence) for m in counts]]
                )
            values = np.where(df == one, table[:, :, None, None], values)
        return values


def step_down(means: np.ndarray, half_widths: np.ndarray) -> np.ndarray:
    """Return the margin at which each rank passes against each other, (..., R, R).

    A rank i passes against b at a margin unless, for some number m, i and at least m - 1 others all
    have a bound above the margin, each with the critical value of m comparisons: those m ranks
    could then all be beyond the margin.

    Args:
        means: row minus column, (..., R, R).
        half_widths: for 1 to R - 1 comparisons, (..., R - 1, R, R).
    """
    uppers = means[..., None, :, :] + half_widths  # (..., M, i, b)
    count = uppers.shape[-1]
    uppers[..., np.eye(count, dtype=bool)] = -np.inf
    by_size = -np.sort(-uppers, axis=-2)  # largest first, over i
    steps = np.arange(count - 1)
    nth = by_size[..., steps, steps, :]  # (..., M, b): the m-th largest bound for m comparisons
    return np.minimum(uppers, nth[..., None, :]).max(-3)


class Clearing:
    """Judges all ranks in one or more comparisons; a rank must be cleared in every one.

    Args:
        comparisons: one comparison, or one for each seed's adapters where these are asked for
            themselves: an adapter of every seed must then be within the margin.
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        usable = [one for one in comparisons if len(one.ranks) > 1 and one.noise_is_known]
        self._pairs = [Pairs(one.ranks, one.differences()) for one in usable]
        self.ranks = sorted({rank for one in usable for rank in one.ranks})

    def bounds(self, confidence: float) -> dict[int, Bound]:
        """Return the margin at which each rank is cleared, and the rank that sets it."""
        bounds: dict[int, Bound] = {}
        for pairs in self._pairs:
            reached = step_down(pairs.means, pairs.half_widths(confidence))[0]  # (R, R)
            for row, rank in enumerate(pairs.ranks):
                column = int(reached[row].argmax())
                bound = Bound(float(reached[row, column]), pairs.ranks[column])
                bounds[rank] = max(bounds.get(rank, bound), bound)
        return dict(sorted(bounds.items()))

    def confidences(self, margin: float) -> dict[int, float]:
        """Return the highest confidence at which each rank is cleared at a margin.

        It is between the ends of `LEVELS`, and 0 for a rank whose bound is infinite.
        """
        confidences: dict[int, float] = {}
        places = special.ndtri(LEVELS)
        for pairs in self._pairs:
            reached = step_down(pairs.means, pairs.half_widths()).max(-1)  # (L, R)
            for row, rank in enumerate(pairs.ranks):
                margins = np.maximum.accumulate(reached[:, row])
                place = (
                    float(np.interp(margin, margins, places)) if np.isfinite(margins[-1]) else None
                )
                confidence = 0.0 if place is None else float(special.ndtr(place))
                confidences[rank] = min(confidences.get(rank, 1.0), confidence)
        return dict(sorted(confidences.items()))
