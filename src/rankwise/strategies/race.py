"""All ranks, seed by seed; those that are shown to be worse drop out, and the race ends when the decision stands."""

import pandas as pd

from rankwise.decide.evidence import read_rank_results
from rankwise.decide.pairwise import compare
from rankwise.decide.select import decide
from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.learning_rates import at_found_rates, count_trials, rate_of_first_seed

FIRST_LOOK = 2  # seeds: one says nothing of how much seeds vary


class Race(Strategy):
    """Trains every rank with one seed after another, and looks at the evidence after each from the second on.

    As in Hoeffding races (Maron and Moore 1994), but with the decision's own paired bounds: a rank drops out when its
    held-out loss is shown to be above another's by more than the margin, at the stated confidence. What is compared are
    finished trials: early steps favour ranks that learn fast, not those that end well. The race ends as soon as the
    decision's rule selects a rank, when one rank is left, or when the seeds are used up.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the first seed's trials until the rates are found, then the next seed's of the ranks still in."""
        return self._replay(evidence)[1]

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the trials complete, the search's usual remainder, and all seeds of the ranks still in."""
        racing, trials = self._replay(evidence)
        if not trials:
            return count_trials(evidence)
        left = self.rate_search(self.ranks).left(evidence)
        later = (
            evidence[(evidence["seed"] > 0) & evidence["rank"].isin(racing)]
            .groupby(["rank", "seed"])
            .ngroups
        )
        return count_trials(evidence) + max(
            len(trials), left + len(racing) * (self.seeds - 1) - later
        )

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks still in and what is missing of them, going through all looks from the first."""
        racing = self.ranks
        search = self.rate_search(self.ranks)
        if first := self.missing_trials(search.wanted(evidence), evidence):
            return racing, first
        for seeds in range(min(FIRST_LOOK, self.seeds), self.seeds + 1):
            early = evidence[evidence["seed"] < seeds]
            rates = {rank: rate_of_first_seed(early, rank) for rank in racing}
            wanted = [
                (r, rate, seed)
                for seed in range(seeds)
                for r, rate in rates.items()
                if rate is not None
            ]
            if trials := self.missing_trials(wanted, evidence):
                return racing, trials
            racing = self._still_in(at_found_rates(evidence, self.ranks, seeds), racing)
            if len(racing) < 2:
                break
        return racing, []

    def _still_in(self, evidence: pd.DataFrame, racing: list[int]) -> list[int]:
        """Return the ranks to go on with; none when the decision stands."""
        if evidence.empty:
            return []
        runs = read_rank_results(evidence)
        if (
            decide(runs, self.margin, self.confidence, chance_loss=self.chance_loss).verdict
            == "selected"
        ):
            return []
        costs = compare(runs, "cost")
        assert costs is not None  # every run has costs
        return [
            rank
            for rank in racing
            if rank in costs.ranks and not costs.is_shown_worse(rank, self.margin, self.confidence)
        ]
