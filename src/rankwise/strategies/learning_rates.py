"""The search for each rank's learning rate, made with the first seed of every strategy.

`GivenRates` tries the user's rates at every rank. `SearchedRates` brackets the best rate of the
smallest and the largest rank, and takes the ranks between from the line through both: about six
trials, whatever the number of ranks. docs/learning-rate.md has the measurements behind its
constants.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, chance_losses
from rankwise.lora.alpha import AlphaPolicy
from rankwise.strategies import trial_keys
from rankwise.strategies.config import AUTO, LearningRates
from rankwise.strategies.trial_keys import TrialKey

START_RATE = 1e-3  # first rate of the search at START_RANK
START_RANK = 4
START_EXPONENT = 1 / 3  # the first rate falls with the rank as r ** -START_EXPONENT
GRID_RATE = 1e-3  # the search's rates are GRID_RATE times a whole power of STEP
STEP = 2.0  # ratio of neighbouring rates
LEAP = 4.0  # ratio of neighbouring rates for a rank that is trained alone
MOST_RATES = 8  # a rank's search stops at this number of rates


class RateSearch(ABC):
    """Chooses the learning rates that the first seed tries.

    Each method returns all trials that its search wants by now, complete ones included. Once all
    of them are complete, the search has ended.
    """

    @abstractmethod
    def propose(self, ranks: Sequence[int], evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the trials that find the rate of every rank, ranks ascending."""

    @abstractmethod
    def remaining(self, ranks: Sequence[int], evidence: pd.DataFrame) -> int:
        """Return how many trials the search for these ranks usually still takes."""

    def propose_alone(self, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the trials that find the rate of a rank that no other is compared with."""
        return self.propose([rank], evidence)

    def propose_next_to(self, neighbour: int, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the trials that find a rank's rate, given its neighbour's chosen rate."""
        return self.propose([rank], evidence)


def make_rate_search(
    setting: LearningRates, alpha: AlphaPolicy, chance_loss: ChanceLoss | None
) -> RateSearch:
    """Return the search that the setting ``learning_rate`` implies."""
    return SearchedRates(alpha, chance_loss) if setting == AUTO else GivenRates(setting)


class GivenRates(RateSearch):
    """Tries all rates that the user gave, at every rank."""

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = rates

    def propose(self, ranks: Sequence[int], evidence: pd.DataFrame) -> list[TrialKey]:
        """Return every rank at every rate."""
        return [TrialKey(rank, rate, 0) for rank in ranks for rate in self.rates]

    def remaining(self, ranks: Sequence[int], evidence: pd.DataFrame) -> int:
        """Return the number of rates not tried yet, over all ranks."""
        return sum(max(0, len(self.rates) - _count_tried(evidence, rank)) for rank in ranks)


class SearchedRates(RateSearch):
    """Searches rates by bracketing: from a start, to half and twice the best rate so far.

    A bracket is complete when the best rate lies between two that are worse. The first rate falls
    with the rank and with the adapter's scaling, which follows from the policy ``alpha``.
    """

    def __init__(self, alpha: AlphaPolicy, chance_loss: ChanceLoss | None = None) -> None:
        self.alpha = alpha
        self.chance_loss = chance_loss

    def propose(self, ranks: Sequence[int], evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the brackets of the first and last rank, then the ranks between.

        Ranks between take the rate on the line through both ends, in log rate over log rank.
        """
        ends = sorted({ranks[0], ranks[-1]})
        wanted: list[TrialKey] = []
        for rank in ends:
            wanted += _keys(rank, self._bracket(rank, trial_keys.rank_evidence(evidence, rank)))
        if trial_keys.missing_keys(wanted, evidence):
            return wanted
        first = trial_keys.first_seed(evidence)
        best = {rank: best_learning_rate(trial_keys.rank_evidence(first, rank)) for rank in ends}
        usable = {rank: rate for rank, rate in best.items() if rate is not None}
        if not usable:
            return wanted
        log_ranks, log_rates = np.log(list(usable)), np.log(list(usable.values()))
        for rank in ranks:
            if rank not in ends:
                rate = math.exp(np.interp(math.log(rank), log_ranks, log_rates))
                wanted += _keys(rank, _lowered(rate, trial_keys.rank_evidence(evidence, rank)))
        return wanted

    def propose_alone(self, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the start rate, and fourfold rates for as long as each is better.

        The whole bracket is searched only where the start learns nothing or diverges.
        """
        trials = trial_keys.rank_evidence(evidence, rank)
        rates = [_round(self._start(rank))]
        start = trials[trials["learning_rate"] == rates[0]]  # all seeds: a later one may diverge
        first = trial_keys.first_seed(start)
        if start["diverged"].any() or (not first.empty and self._learns_nothing(first)):
            return list(dict.fromkeys([*_keys(rank, rates), *self.propose([rank], evidence)]))
        best: float | None = rates[0]
        while best == rates[-1] and len(rates) < MOST_RATES:
            rates.append(_round(rates[0] * LEAP ** len(rates)))
            tried = trial_keys.first_seed(trials[trials["learning_rate"].isin(rates)])
            if tried["learning_rate"].nunique() < len(rates):
                break
            best = best_learning_rate(tried)
        return _keys(rank, rates)

    def propose_next_to(self, neighbour: int, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the neighbour's rate, rescaled like the start, and lower ones if it diverges.

        If every rate of the neighbour diverged, the rank's own bracket is searched.
        """
        rate = trial_keys.chosen_rate(evidence, neighbour)
        if rate is None:
            return self.propose([rank], evidence)
        rescaled = rate * (self._start(rank) / self._start(neighbour))
        return _keys(rank, _lowered(rescaled, trial_keys.rank_evidence(evidence, rank)))

    def remaining(self, ranks: Sequence[int], evidence: pd.DataFrame) -> int:
        """Return the number of trials left, if a bracket takes three and other ranks one."""
        usual = {rank: 3 if rank in (ranks[0], ranks[-1]) else 1 for rank in ranks}
        return sum(max(0, usual[rank] - _count_tried(evidence, rank)) for rank in ranks)

    def _start(self, rank: int) -> float:
        return START_RATE * (START_RANK / rank) ** START_EXPONENT / self.alpha.scaling(rank)

    def _bracket(self, rank: int, evidence: pd.DataFrame) -> list[float]:
        """Return the rates that a rank's bracket wants by now.

        The search is replayed from its start, and each step sees only the rates wanted until
        then, so it takes the same course wherever it was interrupted.
        """
        middle = round(math.log(self._start(rank) / GRID_RATE, STEP))
        steps = {middle - 1, middle, middle + 1}
        while True:
            wanted = [_grid_rate(step) for step in sorted(steps)]
            tried = trial_keys.first_seed(evidence[evidence["learning_rate"].isin(wanted)])
            if tried["learning_rate"].nunique() < len(wanted) or len(wanted) >= MOST_RATES:
                return wanted
            more = self._next_steps(steps, tried)
            if more <= steps:
                return wanted
            steps |= more

    def _next_steps(self, steps: set[int], tried: pd.DataFrame) -> set[int]:
        """Return the steps on the grid of rates that a bracket needs after those tried."""
        best = best_learning_rate(tried)
        if best is None:  # all diverged
            return {min(steps) - 1}
        if self._learns_nothing(tried):
            # Rates that learn nothing are alike, so their best tells no direction: too low a rate
            # ends at the chance level, and so does one at which training collapses.
            return {min(steps) - 1, max(steps) + 1}
        middle = next(step for step in steps if _grid_rate(step) == best)
        return {middle - 1, middle + 1}

    def _learns_nothing(self, evidence: pd.DataFrame) -> bool:
        """Whether no rate is below the chance level by two standard errors over the examples."""
        if self.chance_loss is None:
            return False
        usable = evidence[~evidence["diverged"]]
        chance = chance_losses(self.chance_loss, usable["example_id"].to_numpy())
        excess = usable["loss"] - (1 - LEAST_GAIN) * chance
        by_rate = excess.groupby(usable["learning_rate"])
        return bool((by_rate.mean() + 2 * by_rate.sem() >= 0).all())


def _keys(rank: int, rates: Sequence[float]) -> list[TrialKey]:
    return [TrialKey(rank, rate, 0) for rate in rates]


def _lowered(rate: float, evidence: pd.DataFrame) -> list[float]:
    """Return a rate, and lower ones for as long as the last one has diverged."""
    diverged = set(evidence.loc[evidence["diverged"].astype(bool), "learning_rate"])
    rates = [_round(rate)]
    while rates[-1] in diverged and len(rates) < MOST_RATES:
        rates.append(_round(rate / STEP ** len(rates)))
    return rates


def _count_tried(evidence: pd.DataFrame, rank: int) -> int:
    trials = trial_keys.first_seed(trial_keys.rank_evidence(evidence, rank))
    return int(trials["learning_rate"].nunique())


def _grid_rate(step: int) -> float:
    return _round(GRID_RATE * STEP**step)


def _round(rate: float) -> float:
    """Round to three digits, so that a rate is the same number wherever it is written."""
    return float(f"{rate:.3g}")
