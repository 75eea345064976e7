"""Up from a usual rank while the gain is real, then down while nothing is lost: as practitioners do by hand."""

import pandas as pd

from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.pairwise import compare
from rankwise.decide.select import decide
from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.learning_rates import at_found_rates, count_trials, rate_of_first_seed

START = 8  # where it begins, if it is among the ranks: PEFT's default


class Escalate(Strategy):
    """Trains few ranks: one to start from, those above it while they gain, those below it while they lose nothing.

    The first rank searches for its learning rate; each further one takes over its neighbour's, changed as the search's
    start changes with the rank. Every rank is trained with all seeds, from its own initial values: an adapter is not
    grown from that of the rank before, so that ranks differ in nothing else.

    More seeds may turn it back from ranks that it went on to with fewer. Those then get the other seeds too: a decision
    compares all that is there.

    It starts at `START`, or else at the second smallest rank. It goes up while the rank below is shown to be worse by
    more than the margin, or underfits (`rankwise.decide.diagnose`). Where it stopped, it looks at the next rank down,
    and goes on down while that is shown to be within the margin of every rank tried so far.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing trials of the rank that it has come to."""
        return self._replay(evidence)[1]

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the trials complete, and the rest of the rank that it has come to."""
        visited, trials = self._replay(evidence)
        if not trials:
            return count_trials(evidence)
        rank = visited[-1]
        seeds = evidence.loc[(evidence["rank"] == rank) & (evidence["seed"] > 0), "seed"].nunique()
        search = sum(trial.seed == 0 for trial in trials)
        if len(visited) == 1:
            search = max(search, self.rate_search([rank]).left(evidence))
        return count_trials(evidence) + max(len(trials), search + self.seeds - 1 - seeds)

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks that it came to, in order, and what is missing of the last."""
        visited = [START if START in self.ranks else self.ranks[min(1, len(self.ranks) - 1)]]
        if trials := self._missing_of(visited[0], evidence):
            return visited, trials
        top = self.ranks.index(visited[0])
        while top + 1 < len(self.ranks):
            lower, upper = self.ranks[top], self.ranks[top + 1]
            visited.append(upper)
            if trials := self._missing_of(upper, evidence, beside=lower):
                return visited, trials
            if not self._gains(at_found_rates(evidence, [lower, upper], self.seeds), lower):
                break
            top += 1
        for rank in reversed(self.ranks[:top]):
            if rank not in visited:
                visited.append(rank)
                if trials := self._missing_of(
                    rank, evidence, beside=self.ranks[self.ranks.index(rank) + 1]
                ):
                    return visited, trials
            if not self._suffices(at_found_rates(evidence, visited, self.seeds), rank):
                break
        for rank in self.ranks:
            if rank not in visited and (evidence["rank"] == rank).any():
                visited.append(rank)
                if trials := self._other_seeds(rank, evidence):
                    return visited, trials
        return visited, []

    def _missing_of(
        self, rank: int, evidence: pd.DataFrame, beside: int | None = None
    ) -> list[Trial]:
        search = self.rate_search([rank])
        wanted = (
            search.wanted(evidence) if beside is None else search.wanted_beside(evidence, beside)
        )
        return self.missing_trials(wanted, evidence) or self._other_seeds(rank, evidence)

    def _other_seeds(self, rank: int, evidence: pd.DataFrame) -> list[Trial]:
        rate = rate_of_first_seed(evidence, rank)
        if rate is None:
            return []
        return self.missing_trials([(rank, rate, seed) for seed in range(self.seeds)], evidence)

    def _gains(self, evidence: pd.DataFrame, lower: int) -> bool:
        """Whether the larger of two ranks is a real gain; one that trains where the other diverges is."""
        if evidence["rank"].nunique() < 2:
            return bool((evidence["rank"] != lower).any())
        runs = read_rank_results(evidence)
        costs = compare(runs, "cost")
        assert costs is not None  # every run has costs
        underfits = any(
            one.verdict == "raise the rank"
            for one in diagnose(runs, costs, None, self.margin, self.confidence)
        )
        return underfits or costs.is_shown_worse(lower, self.margin, self.confidence)

    def _suffices(self, evidence: pd.DataFrame, rank: int) -> bool:
        """Whether a rank is shown to be within the margin of all ranks tried."""
        if not (evidence["rank"] == rank).any():
            return False
        return (
            decide(read_rank_results(evidence), self.margin, self.confidence).row(rank).non_inferior
        )
