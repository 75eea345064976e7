"""The search for each rank's learning rate, made with the first seed and in part with the second.

`GivenRates` tries the user's rates at every rank, with the first seed. `SearchedRates` brackets the
best rate of one middle rank, asks the second seed where a lower rate is nearly as good, and carries
the rate to the other ranks by the law of `rankwise.lora.alpha.carried_rate`.
docs/learning-rate.md has the measurements behind it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, chance_losses
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.lora.alpha import USUAL_STEPS, AlphaPolicy, first_rate
from rankwise.strategies import trial_keys
from rankwise.strategies.config import AUTO, LearningRates
from rankwise.strategies.trial_keys import TrialKey

STEP = 2.0  # ratio of neighbouring rates
MOST_RATES = 8  # a rank's search stops at this number of rates
LEAST_LAWFUL_RANK = 4  # smaller ranks often want a lower rate than the law gives them


class RateSearch(ABC):
    """Chooses the learning rates to try, each with the first seed, the second or both.

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

    def propose_few(self, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the trials that find an adapter to keep, at as little cost as possible."""
        return self.propose_alone(rank, evidence)

    def later_seeds(self, seeds: int) -> range:
        """Return the seeds that `propose_few` leaves to be trained at the rate it finds."""
        return range(1, seeds)

    def propose_next_to(self, neighbour: int, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the trials that find a rank's rate, given its neighbour's chosen rate."""
        return self.propose([rank], evidence)


def make_rate_search(
    setting: LearningRates,
    alpha: AlphaPolicy,
    task_type: str,
    chance_loss: ChanceLoss | None,
    seeds: int = 1,
    steps: int = USUAL_STEPS,
) -> RateSearch:
    """Return the search that the setting ``learning_rate`` implies; see `SearchedRates`."""
    if setting == AUTO:
        rates = partial(first_rate, policy=alpha, task_type=task_type, steps=steps)
        return SearchedRates(rates, chance_loss, seeds)
    return GivenRates(setting)


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
    """Searches the rate of one middle rank, and gives the other ranks the corresponding rates.

    Rates are counted in steps. At step 0 a rank has the rate of `first_rate`, and each further step
    doubles it, so equal steps at two ranks correspond by the law.

    The middle rank's rate is bracketed: the search goes on until the best step lies between two
    worse ones. If the next lower step is within the margin of the best, both are trained with the
    second seed too, because the best step of one seed often lies at a cliff for another. Where it
    diverges, no higher step is taken that it did not try, and a lower one is added if none is left.
    Another rank takes the same step, or the first lower one that does not diverge. Its neighbouring
    steps are tried where the law may fail: below rank 4, at a rank that learns nothing, and at the
    first or the last rank if its loss is off the trend of the others.

    Args:
        first_rates: gives the rate of a rank to try first.
        chance_loss: chance-level held-out loss, nats; None if unknown.
        seeds: number of seeds of the sweep.
    """

    def __init__(
        self, first_rates: Callable[[int], float], chance_loss: ChanceLoss | None, seeds: int
    ) -> None:
        self.first_rates = first_rates
        self.chance_loss = chance_loss
        self.seeds = min(seeds, trial_keys.SEARCH_SEEDS)
        # With more seeds than two, rates are tried with one seed, and the rate found gets them all.
        self.few_seeds = 2 if seeds == 2 else 1

    def propose(self, ranks: Sequence[int], evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the bracket of the middle rank, then the other ranks, then those to check."""
        middle = _middle(ranks)
        bracket = self._bracket(middle, 0, evidence)
        wanted = self._keys(middle, bracket)
        best = self._best_step(middle, bracket, evidence)
        if best is None or trial_keys.missing_keys(wanted, evidence):
            return wanted
        wanted += self._second_seed(middle, bracket, evidence)
        bracket = self._with_lower(middle, bracket, evidence)
        wanted = list(dict.fromkeys([*wanted, *self._keys(middle, bracket)]))
        best = self._best_step(middle, bracket, evidence, self.seeds)
        if best is None or trial_keys.missing_keys(wanted, evidence):
            return wanted
        losses = {middle: self._losses(middle, best, evidence)}
        used = {}
        for rank in ranks:
            if rank != middle:
                steps = self._carried(rank, best, evidence)
                wanted += self._keys(rank, steps)
                used[rank] = self._best_step(rank, steps, evidence)
                losses[rank] = self._losses(rank, used[rank], evidence)
        if trial_keys.missing_keys(wanted, evidence) or self._learns_nothing(losses[middle]):
            return wanted
        for rank, step in used.items():
            trend = _trend(rank, losses)
            if step is not None and self._is_doubtful(rank, losses[rank], trend):
                wanted += self._keys(rank, self._bracket(rank, step, evidence))
        return list(dict.fromkeys(wanted))

    def propose_next_to(self, neighbour: int, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the rate that corresponds to the neighbour's, and others where the law may fail.

        The neighbour's loss is the trend. If all of its rates diverged, the rank's own rate is
        searched.
        """
        rate = trial_keys.chosen_rate(evidence, neighbour)
        if rate is None:
            return self.propose([rank], evidence)
        step = round(math.log(rate / self._rate(neighbour, 0), STEP))
        steps = self._carried(rank, step, evidence)
        wanted = self._keys(rank, steps)
        used = self._best_step(rank, steps, evidence)
        if used is None or trial_keys.missing_keys(wanted, evidence):
            return wanted
        losses = self._losses(rank, used, evidence)
        trend = self._losses(neighbour, step, evidence)
        if not self._learns_nothing(trend) and self._is_doubtful(rank, losses, trend):
            wanted += self._keys(rank, self._bracket(rank, used, evidence))
        return list(dict.fromkeys(wanted))

    def propose_few(self, rank: int, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return trials at the first rate and the next higher, and at further ones while that pays.

        An adapter to keep needs no rate that suits other seeds and ranks, so the better of two is
        enough where the higher rate is not better by more than the margin and by more than two
        standard errors. With two seeds the rates take turns at them. If nothing learns, or seeds
        diverged at all rates tried, the whole search follows.
        """
        steps = [0, 1]
        while True:
            wanted = [TrialKey(rank, self._rate(rank, s), s % self.few_seeds) for s in steps]
            if trial_keys.missing_keys(wanted, evidence):
                return wanted
            losses = [self._losses(rank, s, evidence, s % self.few_seeds) for s in steps]
            is_lost = trial_keys.chosen_rate(evidence, rank) is None  # a later seed may diverge
            if is_lost or all(one.empty or self._learns_nothing(one) for one in losses):
                return [*wanted, *self.propose([rank], evidence)]
            *_, low, high = losses
            gain, error = _mean_and_error(low - high)  # NaN if one diverged
            if len(steps) == MOST_RATES or not gain > max(LOSS_MARGIN, 2 * error):
                return wanted
            steps.append(steps[-1] + 1)

    def later_seeds(self, seeds: int) -> range:
        """Return the seeds after those that `propose_few` uses."""
        return range(self.few_seeds, seeds)

    def remaining(self, ranks: Sequence[int], evidence: pd.DataFrame) -> int:
        """Return the number of trials left, if a bracket takes three and other ranks one."""
        left = 0
        for rank in ranks:
            is_bracketed = rank == _middle(ranks) or rank < LEAST_LAWFUL_RANK
            left += max(0, (3 if is_bracketed else 1) - _count_tried(evidence, rank))
        return left

    def _rate(self, rank: int, step: int) -> float:
        """Return the rate of a step, with three digits: the same number wherever it is written."""
        return float(f"{self.first_rates(rank) * STEP**step:.3g}")

    def _keys(self, rank: int, steps: Sequence[int]) -> list[TrialKey]:
        return [TrialKey(rank, self._rate(rank, step), 0) for step in steps]

    def _losses(
        self, rank: int, step: int | None, evidence: pd.DataFrame, seed: int = 0
    ) -> pd.Series:
        """Return a seed's loss of each example; none if the trial diverged or is missing.

        A missing step is None.
        """
        trials = trial_keys.rank_evidence(evidence, rank)
        rate = None if step is None else self._rate(rank, step)
        wanted = (trials["seed"] == seed) & (trials["learning_rate"] == rate)
        rows = trials[wanted & ~trials["diverged"].astype(bool)]
        return rows.set_index("example_id")["loss"]

    def _best_step(
        self, rank: int, steps: Sequence[int], evidence: pd.DataFrame, seeds: int = 1
    ) -> int | None:
        """Return the best step of those tried; None if all diverged or none was tried."""
        by_rate = {self._rate(rank, step): step for step in steps}
        trials = trial_keys.rank_evidence(evidence, rank)
        trials = trials[trials["seed"] < seeds]
        best = best_learning_rate(trials[trials["learning_rate"].isin(by_rate)])
        return None if best is None else by_rate[best]

    def _carried(self, rank: int, step: int, evidence: pd.DataFrame) -> list[int]:
        """Return the steps that a rank wants, given the best step of another rank."""
        if rank < LEAST_LAWFUL_RANK:
            return self._bracket(rank, step, evidence)
        trials = trial_keys.rank_evidence(evidence, rank)
        diverged = set(trials.loc[trials["diverged"].astype(bool), "learning_rate"])
        steps = [step]
        while self._rate(rank, steps[-1]) in diverged and len(steps) < MOST_RATES:
            steps.append(steps[-1] - 1)
        return steps

    def _bracket(self, rank: int, start: int, evidence: pd.DataFrame) -> list[int]:
        """Return the steps that a rank's bracket wants by now, ascending.

        The search is replayed from its start, and each round sees only the steps wanted until
        then, so it takes the same course wherever it was interrupted.
        """
        steps = {start - 1, start, start + 1}
        while len(steps) < MOST_RATES:
            if trial_keys.missing_keys(self._keys(rank, sorted(steps)), evidence):
                break
            more = self._next_steps(rank, steps, evidence)
            if more <= steps:
                break
            steps |= more
        return sorted(steps)

    def _second_seed(
        self, rank: int, steps: Sequence[int], evidence: pd.DataFrame
    ) -> list[TrialKey]:
        """Return the second seed's trials at the best step and the next lower, where they help.

        They do if the first seed tells the two apart, but by no more than the margin.
        """
        losses = {step: self._losses(rank, step, evidence) for step in steps}
        usable = [step for step in steps if not losses[step].empty]
        lowest = min(usable, key=lambda step: losses[step].mean())
        is_told_apart = lowest == self._best_step(rank, steps, evidence)
        if self.seeds == 1 or lowest - 1 not in usable or not is_told_apart:
            return []
        behind, _ = _mean_and_error(losses[lowest - 1] - losses[lowest])
        if behind > LOSS_MARGIN:
            return []
        return [TrialKey(rank, self._rate(rank, step), 1) for step in (lowest, lowest - 1)]

    def _with_lower(self, rank: int, steps: list[int], evidence: pd.DataFrame) -> list[int]:
        """Return the steps, and lower ones where the second seed left none below a divergence."""
        trials = trial_keys.rank_evidence(evidence, rank)
        lost = trials[trials["diverged"].astype(bool) & (trials["seed"] < self.seeds)]
        if (lost["seed"] == 0).all():
            return steps
        diverged = set(lost["learning_rate"])
        while self._rate(rank, steps[0]) in diverged and len(steps) < MOST_RATES:
            steps = [steps[0] - 1, *steps]
        return steps

    def _next_steps(self, rank: int, steps: set[int], evidence: pd.DataFrame) -> set[int]:
        """Return the steps that a bracket needs after those tried."""
        best = self._best_step(rank, sorted(steps), evidence)
        if best is None:  # all diverged
            return {min(steps) - 1}
        losses = [self._losses(rank, step, evidence) for step in steps]
        if all(one.empty or self._learns_nothing(one) for one in losses):
            # Rates that learn nothing are alike, so their best tells no direction: too low a rate
            # ends at the chance level, and so does one at which training collapses.
            return {min(steps) - 1, max(steps) + 1}
        return {best - 1, best + 1}

    def _learns_nothing(self, losses: pd.Series) -> bool:
        """Whether losses are not below the chance level by two standard errors over examples."""
        if self.chance_loss is None:
            return False
        chance = chance_losses(self.chance_loss, losses.index.to_numpy())
        mean, error = _mean_and_error(losses - (1 - LEAST_GAIN) * chance)
        return mean + 2 * error >= 0

    def _is_doubtful(self, rank: int, losses: pd.Series, trend: pd.Series | None) -> bool:
        """Whether the losses at a carried rate suggest that the law does not hold for the rank."""
        if rank < LEAST_LAWFUL_RANK:
            return False  # its neighbouring rates are tried anyway
        if self._learns_nothing(losses):
            return True
        if trend is None:
            return False
        mean, error = _mean_and_error(losses - trend)
        return mean > max(LOSS_MARGIN, 2 * error)


def _middle(ranks: Sequence[int]) -> int:
    """Return the rank to search at: the middle one, or the larger of two, never the smallest."""
    return ranks[len(ranks) // 2]


def _trend(rank: int, losses: Mapping[int, pd.Series]) -> pd.Series | None:
    """Return the losses to expect at the first or the last rank, example by example.

    The last rank is expected to do as well as the one below it. The first is expected to be behind
    the one above it as far as that is behind the next, at equal distance in log rank.

    Args:
        rank: one of the ranks; one in the middle has no trend.
        losses: losses of each rank; none where all rates diverged.
    """
    usable = sorted(one for one in losses if not losses[one].empty)
    if rank == usable[-1] and len(usable) > 1:
        return losses[usable[-2]]
    if rank != usable[0] or len(usable) < 2:
        return None
    near = losses[usable[1]]
    if len(usable) == 2:
        return near
    gain, _ = _mean_and_error(near - losses[usable[2]])
    slope = max(0.0, gain) / math.log(usable[2] / usable[1])
    return near + slope * math.log(usable[1] / rank)


def _mean_and_error(differences: pd.Series) -> tuple[float, float]:
    """Return the mean over examples and its standard error, NaN for a single example."""
    values = differences.to_numpy(dtype=float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _count_tried(evidence: pd.DataFrame, rank: int) -> int:
    trials = trial_keys.first_seed(trial_keys.rank_evidence(evidence, rank))
    return int(trials["learning_rate"].nunique())
