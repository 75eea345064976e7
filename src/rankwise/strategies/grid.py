"""Every rank trained by itself, with several seeds, each rank at its own best learning rate."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from rankwise.config import AUTO
from rankwise.decide import best_learning_rate
from rankwise.engine.trial import Trial
from rankwise.lora.scaling import AlphaPolicy
from rankwise.strategies.base import Strategy

START_RATE = 2e-3  # where the search starts at START_RANK; docs/learning-rate.md has the measurement
START_RANK = 4
START_EXPONENT = 2 / 3  # the start falls with the rank as r ** -START_EXPONENT
STEP = 2.0  # between neighbouring rates of the search
MOST_RATES = 8  # that the search tries for one rank


class Grid(Strategy):
    """Trains every rank with every seed at the rank's best learning rate.

    The first seed finds the rate. With several rates given, every rank tries all of them. With one, there is nothing
    to find. With ``"auto"``, the smallest and the largest rank search: from a start, to the neighbours at half and
    twice the rate, until the best lies between two that are worse. The ranks between take the rate on the straight
    line through the two ends in log rate against log rank. The other seeds then run at the rates found.

    Args:
        ranks: ascending.
        seeds: trials per rank.
        learning_rate: ``"auto"``, or the rates to try.
        alpha: gives each rank its ``lora_alpha``.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        seeds: int,
        learning_rate: Literal["auto"] | Sequence[float],
        alpha: AlphaPolicy,
    ) -> None:
        self.ranks = list(ranks)
        self.seeds = seeds
        self.learning_rate = learning_rate
        self.alpha = alpha

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the first seed's trials until the rates are found, then the other seeds'."""
        if self.learning_rate == AUTO:
            wanted = self._search(evidence)
        else:
            wanted = [(rank, rate, 0) for rank in self.ranks for rate in self.learning_rate]
        missing = self._missing(wanted, evidence)
        if missing:
            return missing
        best = {rank: best_learning_rate(_of_rank(evidence, rank)) for rank in self.ranks}
        wanted = [(rank, rate, seed) for seed in range(self.seeds) for rank, rate in best.items() if rate is not None]
        return self._missing(wanted, evidence)

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the trials complete, the search's usual remainder, and the other seeds'."""
        complete = evidence.groupby(["rank", "learning_rate", "seed"]).ngroups
        first = _first_seed(evidence)
        left = sum(max(0, self._rates_of(rank) - _tried(first, rank)) for rank in self.ranks)
        later = evidence[evidence["seed"] > 0].groupby(["rank", "seed"]).ngroups
        return complete + left + len(self.ranks) * (self.seeds - 1) - later

    def _rates_of(self, rank: int) -> int:
        """Return how many rates a rank usually tries."""
        if self.learning_rate != AUTO:
            return len(self.learning_rate)
        return 3 if rank in (self.ranks[0], self.ranks[-1]) else 1

    def _search(self, evidence: pd.DataFrame) -> list[tuple[int, float, int]]:
        """Return the (rank, rate, seed) that the search for learning rates wants, complete or not."""
        ends = sorted({self.ranks[0], self.ranks[-1]})
        wanted = [(rank, rate, 0) for rank in ends for rate in self._bracket(_of_rank(evidence, rank), rank)]
        if self._missing(wanted, evidence):
            return wanted
        found = {rank: best_learning_rate(_first_seed(_of_rank(evidence, rank))) for rank in ends}
        known = {rank: rate for rank, rate in found.items() if rate is not None}
        for rank in self.ranks:
            if rank not in ends and known:
                line = np.interp(math.log(rank), np.log(list(known)), np.log(list(known.values())))
                wanted.append((rank, _round(math.exp(line)), 0))
        return wanted

    def _bracket(self, evidence: pd.DataFrame, rank: int) -> list[float]:
        """Return the rates that one rank's search has tried and wants to try next."""
        first = _first_seed(evidence)
        tried = sorted(first["learning_rate"].unique())
        if not tried:
            start = START_RATE * (START_RANK / rank) ** START_EXPONENT / self.alpha.scaling(rank)
            start = _round(1e-3 * STEP ** round(math.log(start / 1e-3, STEP)))
            return [_round(start / STEP), start, _round(start * STEP)]
        if len(tried) >= MOST_RATES:
            return tried
        best = best_learning_rate(first)
        if best is None:  # all diverged: lower
            return [*tried, _round(tried[0] / STEP)]
        return sorted({*tried, _round(best / STEP), _round(best * STEP)})

    def _missing(self, wanted: Sequence[tuple[int, float, int]], evidence: pd.DataFrame) -> list[Trial]:
        complete = set(evidence[["rank", "learning_rate", "seed"]].drop_duplicates().itertuples(index=False, name=None))
        return [
            Trial(
                rank=rank,
                seed=seed,
                learning_rate=rate,
                lora_alpha=self.alpha.alpha(rank),
                use_rslora=self.alpha.use_rslora,
            )
            for rank, rate, seed in wanted
            if (rank, rate, seed) not in complete
        ]


def _of_rank(evidence: pd.DataFrame, rank: int) -> pd.DataFrame:
    return evidence[evidence["rank"] == rank]


def _first_seed(evidence: pd.DataFrame) -> pd.DataFrame:
    return evidence[evidence["seed"] == 0]


def _tried(evidence: pd.DataFrame, rank: int) -> int:
    return int(_of_rank(evidence, rank)["learning_rate"].nunique())


def _round(rate: float) -> float:
    """Round to three digits, so that a rate is the same number wherever it is written."""
    return float(f"{rate:.3g}")
