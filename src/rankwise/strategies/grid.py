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

START_RATE = 1e-3  # where the search starts at START_RANK; docs/learning-rate.md has the measurement
START_RANK = 4
START_EXPONENT = 1 / 3  # the start falls with the rank as r ** -START_EXPONENT
UNIT_RATE = 1e-3  # the search's rates are this times a whole power of STEP
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
        guess_loss: held-out loss of guessing, nats, where it is known.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        seeds: int,
        learning_rate: Literal["auto"] | Sequence[float],
        alpha: AlphaPolicy,
        guess_loss: float | None = None,
    ) -> None:
        self.ranks = list(ranks)
        self.seeds = seeds
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.guess_loss = guess_loss

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
                wanted += [(rank, rate, 0) for rate in self._lowered(_of_rank(evidence, rank), math.exp(line))]
        return wanted

    def _bracket(self, evidence: pd.DataFrame, rank: int) -> list[float]:
        """Return the rates that one rank's search wants, complete or not.

        The search is replayed from its start, each step on the rates wanted until then, so that it takes the same
        way wherever it was interrupted.
        """
        first = _first_seed(evidence)
        start = START_RATE * (START_RANK / rank) ** START_EXPONENT / self.alpha.scaling(rank)
        middle = round(math.log(start / UNIT_RATE, STEP))
        rates = {step: _on_grid(step) for step in (middle - 1, middle, middle + 1)}
        while True:
            wanted = [rates[step] for step in sorted(rates)]
            known = first[first["learning_rate"].isin(wanted)]
            if known["learning_rate"].nunique() < len(wanted) or len(wanted) >= MOST_RATES:
                return wanted
            best = best_learning_rate(known)
            if best is None:  # all diverged: lower
                more = [min(rates) - 1]
            elif self._nothing_learnt(known):
                # Rates that learn nothing are all alike, and which of them is best tells no direction: too low a rate
                # ends at guessing, and so does one at which training collapses.
                more = [min(rates) - 1, max(rates) + 1]
            else:
                more = [step + side for step, rate in rates.items() if rate == best for side in (-1, 1)]
            if set(more) <= set(rates):
                return wanted
            rates.update({step: _on_grid(step) for step in more})

    def _nothing_learnt(self, evidence: pd.DataFrame) -> bool:
        """Whether no rate's loss is below guessing by more than two standard errors over the examples."""
        if self.guess_loss is None:
            return False
        losses = evidence[~evidence["diverged"]].groupby("learning_rate")["loss"]
        return bool((losses.mean() + 2 * losses.sem() >= self.guess_loss).all())

    def _lowered(self, evidence: pd.DataFrame, rate: float) -> list[float]:
        """Return a rate, and lower ones for as long as those above have diverged."""
        rates = [_round(rate)]
        while len(rates) < MOST_RATES and bool(evidence.loc[evidence["learning_rate"] == rates[-1], "diverged"].any()):
            rates.append(_round(rate / STEP ** len(rates)))
        return rates

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


def _on_grid(step: int) -> float:
    return _round(UNIT_RATE * STEP**step)


def _round(rate: float) -> float:
    """Round to three digits, so that a rate is the same number wherever it is written."""
    return float(f"{rate:.3g}")
