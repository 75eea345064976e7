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
from rankwise.decide.findings import Findings
from rankwise.engine.trial import Trial
from rankwise.strategies import trial_keys
from rankwise.strategies.base import Strategy

START_RANK = 8  # PEFT's default rank


class Escalate(Strategy):
    """Trains few ranks: a start, those above while they gain, and those below while none loses.

    Every rank after the first takes its neighbour's learning rate, rescaled like the start of the
    search. With more seeds the climb may end earlier than it did with fewer. Ranks visited then
    get the other seeds too, because the decision compares them all.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing trials of the rank that the climb has reached."""
        return self._replay(evidence)[1]

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, and the rest of the rank that the climb has reached."""
        visited, trials = self._replay(evidence)
        if not trials:
            return trial_keys.count_trials(evidence)
        rank = visited[-1]
        later = self.seeds - 1 - trial_keys.count_later_trials(evidence, [rank])
        search = sum(trial.seed == 0 for trial in trials)
        if len(visited) == 1:
            search = max(search, self.rates.remaining([rank], evidence))
        return trial_keys.count_trials(evidence) + max(len(trials), search + later)

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks visited so far, in order, and the missing trials of the last one."""
        start = START_RANK if START_RANK in self.ranks else self.ranks[min(1, len(self.ranks) - 1)]
        visited = [start]
        if trials := self._missing(start, evidence, None):
            return visited, trials
        top = self.ranks.index(start)
        while top + 1 < len(self.ranks):
            lower, upper = self.ranks[top], self.ranks[top + 1]
            visited.append(upper)
            if trials := self._missing(upper, evidence, lower):
                return visited, trials
            if not self._gains(evidence, lower, upper):
                break
            top += 1
        for index in reversed(range(top)):
            rank = self.ranks[index]
            if rank not in visited:
                visited.append(rank)
                if trials := self._missing(rank, evidence, self.ranks[index + 1]):
                    return visited, trials
            if not self._suffices(evidence, rank, visited):
                break
        return self._with_fewer_seeds(visited, evidence)

    def _with_fewer_seeds(
        self, visited: list[int], evidence: pd.DataFrame
    ) -> tuple[list[int], list[Trial]]:
        """Return all ranks visited, and the missing trials of one visited when seeds were fewer."""
        visited = list(visited)
        for rank in self.ranks:
            if rank not in visited and not trial_keys.rank_evidence(evidence, rank).empty:
                visited.append(rank)
                if trials := self._missing_seeds(rank, evidence):
                    return visited, trials
        return visited, []

    def _missing(self, rank: int, evidence: pd.DataFrame, neighbour: int | None) -> list[Trial]:
        """Return a rank's missing trials of the search, or else those of all seeds."""
        if neighbour is None:
            search = self.rates.propose([rank], evidence)
        else:
            search = self.rates.propose_next_to(neighbour, rank, evidence)
        return self.missing_trials(search, evidence) or self._missing_seeds(rank, evidence)

    def _missing_seeds(self, rank: int, evidence: pd.DataFrame) -> list[Trial]:
        chosen = {rank: trial_keys.chosen_rate(evidence, rank)}
        return self.missing_trials(trial_keys.seed_keys(chosen, self.seeds), evidence)

    def _gains(self, evidence: pd.DataFrame, lower: int, upper: int) -> bool:
        """Whether ``upper`` is a real gain over ``lower``, or trains where that diverges."""
        judged = trial_keys.at_chosen_rates(evidence, [lower, upper], self.seeds)
        if judged["rank"].nunique() < 2:
            return bool((judged["rank"] != lower).any())
        findings = Findings(read_rank_results(judged), self.rule)
        underfits = any(item.verdict == "raise the rank" for item in findings.diagnosis)
        return underfits or findings.is_shown_worse(lower)

    def _suffices(self, evidence: pd.DataFrame, rank: int, visited: list[int]) -> bool:
        """Whether a rank is shown to be within the margin of all ranks visited."""
        judged = trial_keys.at_chosen_rates(evidence, visited, self.seeds)
        if trial_keys.rank_evidence(judged, rank).empty:
            return False
        findings = Findings(read_rank_results(judged), self.rule)
        bound = findings.bounds.get(rank)
        return bound is not None and bound.upper <= findings.margin
