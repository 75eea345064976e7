"""The search for each rank's own learning rate, which every strategy's first seed makes."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, chance_losses
from rankwise.lora.alpha import AlphaPolicy
from rankwise.strategies.config import AUTO

Asked = tuple[int, float, int]
"""What makes a trial: rank, learning rate, seed."""

START_RATE = (
    1e-3  # where the search starts at START_RANK; docs/learning-rate.md has the measurement
)
START_RANK = 4
START_EXPONENT = 1 / 3  # the start falls with the rank as r ** -START_EXPONENT
UNIT_RATE = 1e-3  # the search's rates are this times a whole power of STEP
STEP = 2.0  # between neighbouring rates of the search
LEAP = 4.0  # between the rates of a rank that is trained alone
MOST_RATES = 8  # at which the search for one rank widens no more


class RateSearch:
    """Finds ranks' learning rates with the first seed.

    With several rates given, every rank tries all of them. With one, there is nothing to find. With ``"auto"``, the
    smallest and the largest rank search: from a start, to the neighbours at half and twice the rate, until the best
    lies between two that are worse. The ranks between take the rate on the straight line through the two ends in log
    rate against log rank.

    Args:
        ranks: ascending.
        learning_rate: ``"auto"``, or the rates to try.
        alpha: gives each rank its ``lora_alpha``.
        chance_loss: held-out loss that says nothing is learnt, nats, where it is known.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        learning_rate: Literal["auto"] | Sequence[float],
        alpha: AlphaPolicy,
        chance_loss: ChanceLoss | None = None,
    ) -> None:
        self.ranks = list(ranks)
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.chance_loss = chance_loss

    def wanted(self, evidence: pd.DataFrame) -> list[Asked]:
        """Return what the search wants, complete or not; all complete, the rates are found."""
        if self.learning_rate == AUTO:
            return self._search(evidence)
        return [(rank, rate, 0) for rank in self.ranks for rate in self.learning_rate]

    def wanted_of_one(self, evidence: pd.DataFrame) -> list[Asked]:
        """Return what is wanted of one rank alone: its start rate, and leaps upwards for as long as each is better.

        The whole search is made only where the start learns nothing or diverges.
        """
        rank = self.ranks[-1]
        if self.learning_rate != AUTO:
            return self.wanted(evidence)
        own = of_rank(evidence, rank)
        rates = [_round(self._start(rank))]
        start = own[own["learning_rate"] == rates[0]]  # of every seed: a later one may diverge
        first = _first_seed(start)
        if start["diverged"].any() or (not first.empty and self._nothing_learnt(first)):
            return list(dict.fromkeys([(rank, rates[0], 0), *self.wanted(evidence)]))
        best: float | None = rates[0]
        while best == rates[-1] and len(rates) < MOST_RATES:
            rates.append(_round(rates[0] * LEAP ** len(rates)))
            known = _first_seed(own[own["learning_rate"].isin(rates)])
            if known["learning_rate"].nunique() < len(rates):
                break
            best = best_learning_rate(known)
        return [(rank, rate, 0) for rate in rates]

    def wanted_beside(self, evidence: pd.DataFrame, found: int) -> list[Asked]:
        """Return what is wanted of one rank beside another whose rate is found: that rate, changed as the start does.

        Beside a rank of which every rate diverged it searches for itself.
        """
        rank = self.ranks[-1]
        rate = rate_of_first_seed(evidence, found)
        if self.learning_rate != AUTO or rate is None:
            return self.wanted(evidence)
        rate *= self._start(rank) / self._start(found)
        return [(rank, lowered, 0) for lowered in self._lowered(of_rank(evidence, rank), rate)]

    def left(self, evidence: pd.DataFrame) -> int:
        """Return how many trials the search usually still takes."""
        first = _first_seed(evidence)
        return sum(max(0, self._rates_of(rank) - _tried(first, rank)) for rank in self.ranks)

    def _rates_of(self, rank: int) -> int:
        """Return how many rates a rank usually tries."""
        if self.learning_rate != AUTO:
            return len(self.learning_rate)
        return 3 if rank in (self.ranks[0], self.ranks[-1]) else 1

    def _search(self, evidence: pd.DataFrame) -> list[Asked]:
        """Return the (rank, rate, seed) that the search for learning rates wants, complete or not."""
        ends = sorted({self.ranks[0], self.ranks[-1]})
        wanted = [
            (rank, rate, 0)
            for rank in ends
            for rate in self._bracket(of_rank(evidence, rank), rank)
        ]
        if missing(wanted, evidence):
            return wanted
        found = {rank: best_learning_rate(_first_seed(of_rank(evidence, rank))) for rank in ends}
        known = {rank: rate for rank, rate in found.items() if rate is not None}
        for rank in self.ranks:
            if rank not in ends and known:
                line = np.interp(math.log(rank), np.log(list(known)), np.log(list(known.values())))
                wanted += [
                    (rank, rate, 0)
                    for rate in self._lowered(of_rank(evidence, rank), math.exp(line))
                ]
        return wanted

    def _bracket(self, evidence: pd.DataFrame, rank: int) -> list[float]:
        """Return the rates that one rank's search wants, complete or not.

        The search is replayed from its start, each step on the rates wanted until then, so that it takes the same
        way wherever it was interrupted.
        """
        first = _first_seed(evidence)
        middle = round(math.log(self._start(rank) / UNIT_RATE, STEP))
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
                more = [
                    step + side for step, rate in rates.items() if rate == best for side in (-1, 1)
                ]
            if set(more) <= set(rates):
                return wanted
            rates.update({step: _on_grid(step) for step in more})

    def _start(self, rank: int) -> float:
        return START_RATE * (START_RANK / rank) ** START_EXPONENT / self.alpha.scaling(rank)

    def _nothing_learnt(self, evidence: pd.DataFrame) -> bool:
        """Whether no rate's loss is below guessing by more than two standard errors over the examples."""
        if self.chance_loss is None:
            return False
        usable = evidence[~evidence["diverged"]]
        chance = chance_losses(self.chance_loss, usable["example_id"].to_numpy())
        by_rate = (usable["loss"] - (1 - LEAST_GAIN) * chance).groupby(usable["learning_rate"])
        return bool((by_rate.mean() + 2 * by_rate.sem() >= 0).all())

    def _lowered(self, evidence: pd.DataFrame, rate: float) -> list[float]:
        """Return a rate, and lower ones for as long as those above have diverged."""
        rates = [_round(rate)]
        while len(rates) < MOST_RATES and bool(
            evidence.loc[evidence["learning_rate"] == rates[-1], "diverged"].any()
        ):
            rates.append(_round(rate / STEP ** len(rates)))
        return rates


def missing(wanted: Iterable[Asked], evidence: pd.DataFrame) -> list[Asked]:
    """Return what is not complete of what is wanted, in its order."""
    complete = set(
        evidence[["rank", "learning_rate", "seed"]]
        .drop_duplicates()
        .itertuples(index=False, name=None)
    )
    return [asked for asked in wanted if asked not in complete]


def rate_of_first_seed(evidence: pd.DataFrame, rank: int) -> float | None:
    """Return the rate that the first seed finds best for a rank, of those at which no seed diverged."""
    own = of_rank(evidence, rank)
    gone = own.loc[own["diverged"].astype(bool), "learning_rate"].unique()
    return best_learning_rate(_first_seed(own[~own["learning_rate"].isin(gone)]))


def at_found_rates(evidence: pd.DataFrame, ranks: Sequence[int], seeds: int) -> pd.DataFrame:
    """Return what a strategy judges on its way: so many seeds of these ranks, each at the rate of its first seed.

    Nothing else may count, or a resumed sweep, which has seen more, would judge otherwise. A rank without a rate is not
    in it.
    """
    early = evidence[evidence["seed"] < seeds]
    parts = []
    for rank in ranks:
        own = of_rank(early, rank)
        parts.append(own[own["learning_rate"] == rate_of_first_seed(early, rank)])
    return pd.concat(parts, ignore_index=True)


def count_trials(evidence: pd.DataFrame) -> int:
    """Return how many trials are complete."""
    return int(evidence.groupby(["rank", "learning_rate", "seed"]).ngroups)


def of_rank(evidence: pd.DataFrame, rank: int) -> pd.DataFrame:
    """Return one rank's evidence."""
    return evidence[evidence["rank"] == rank]


def _first_seed(evidence: pd.DataFrame) -> pd.DataFrame:
    return evidence[evidence["seed"] == 0]


def _tried(evidence: pd.DataFrame, rank: int) -> int:
    return int(of_rank(evidence, rank)["learning_rate"].nunique())


def _on_grid(step: int) -> float:
    return _round(UNIT_RATE * STEP**step)


def _round(rate: float) -> float:
    """Round to three digits, so that a rate is the same number wherever it is written."""
    return float(f"{rate:.3g}")
