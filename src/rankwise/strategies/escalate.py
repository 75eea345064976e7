"""The escalate strategy: up from a usual rank while that gains, then down while nothing is lost.

It starts at rank 8, or else at the second smallest rank, and trains every rank that it visits with
all seeds. It goes up while the rank below is shown to be worse by more than the margin, or
underfits (`rankwise.decide.diagnose`). Where that stops, it tries the next rank down, and goes on
down while the rank is shown to be within the margin of every rank tried. The search for a learning
rate is made for the first rank only. Of six ranks it costs a half to two thirds of the grid
(docs/results/strategies.md).

This is how practitioners search by hand. Each rank starts from its own initial values: an adapter
is not grown from the rank before, so ranks differ in nothing else.
"""

import pandas as pd

from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import analyse
from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.trial_keys import (
    TrialKey,
    at_chosen_rates,
    chosen_rate,
    count_trials,
    rank_evidence,
)

START_RANK = 8  # PEFT's default rank


class Escalate(Strategy):
    """Trains few ranks: a start, those above while they gain, and those below while none loses.

    Every rank after the first takes its neighbour's learning rate, rescaled like the start of the
    search. More seeds may turn the climb back earlier than fewer seeds did. Ranks that were
    visited with fewer seeds then get the other seeds too, because the decision compares them all.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing trials of the rank that the climb has reached."""
        return self._replay(evidence)[1]

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, and the rest of the rank that the climb has reached."""
        visited, trials = self._replay(evidence)
        if not trials:
            return count_trials(evidence)
        rank = visited[-1]
        of_rank = rank_evidence(evidence, rank)
        later_seeds = of_rank.loc[of_rank["seed"] > 0, "seed"].nunique()
        search = sum(trial.seed == 0 for trial in trials)
        if len(visited) == 1:
            search = max(search, self.rates.remaining([rank], evidence))
        return count_trials(evidence) + max(len(trials), search + self.seeds - 1 - later_seeds)

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks visited so far, in order, and the missing trials of the last one."""
        start = START_RANK if START_RANK in self.ranks else self.ranks[min(1, len(self.ranks) - 1)]
        visited = [start]
        if trials := self._missing_of_start(start, evidence):
            return visited, trials
        top = self.ranks.index(start)
        while top + 1 < len(self.ranks):
            lower, upper = self.ranks[top], self.ranks[top + 1]
            visited.append(upper)
            if trials := self._missing_of(upper, lower, evidence):
                return visited, trials
            if not self._gains(at_chosen_rates(evidence, [lower, upper], self.seeds), lower):
                break
            top += 1
        for index in reversed(range(top)):
            rank = self.ranks[index]
            if rank not in visited:
                visited.append(rank)
                if trials := self._missing_of(rank, self.ranks[index + 1], evidence):
                    return visited, trials
            if not self._suffices(at_chosen_rates(evidence, visited, self.seeds), rank):
                break
        for rank in self.ranks:  # ranks that were visited with fewer seeds
            if rank not in visited and not rank_evidence(evidence, rank).empty:
                visited.append(rank)
                if trials := self._missing_seeds(rank, evidence):
                    return visited, trials
        return visited, []

    def _missing_of_start(self, rank: int, evidence: pd.DataFrame) -> list[Trial]:
        search = self.rates.propose([rank], evidence)
        return self.missing_trials(search, evidence) or self._missing_seeds(rank, evidence)

    def _missing_of(self, rank: int, neighbour: int, evidence: pd.DataFrame) -> list[Trial]:
        search = self.rates.propose_next_to(neighbour, rank, evidence)
        return self.missing_trials(search, evidence) or self._missing_seeds(rank, evidence)

    def _missing_seeds(self, rank: int, evidence: pd.DataFrame) -> list[Trial]:
        rate = chosen_rate(evidence, rank)
        if rate is None:
            return []
        wanted = [TrialKey(rank, rate, seed) for seed in range(self.seeds)]
        return self.missing_trials(wanted, evidence)

    def _gains(self, evidence: pd.DataFrame, lower: int) -> bool:
        """Whether the larger of two ranks is a real gain, or trains where ``lower`` diverges."""
        if evidence["rank"].nunique() < 2:
            return bool((evidence["rank"] != lower).any())
        findings = analyse(read_rank_results(evidence), self.rule)
        underfits = any(item.verdict == "raise the rank" for item in findings.diagnosis)
        return underfits or findings.is_shown_worse(lower)

    def _suffices(self, evidence: pd.DataFrame, rank: int) -> bool:
        """Whether a rank is shown to be within the margin of all ranks tried."""
        if rank_evidence(evidence, rank).empty:
            return False
        findings = analyse(read_rank_results(evidence), self.rule)
        bound = findings.bounds.get(rank)
        return bound is not None and bound.upper <= findings.margin
