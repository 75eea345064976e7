"""Every rank trained by itself, with several seeds, each rank at its own best learning rate."""

import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.learning_rates import count_trials, of_rank


class Grid(Strategy):
    """Trains every rank with every seed at the rank's best learning rate.

    The first seed finds the rates (`RateSearch`); the others then run at the rates found.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the first seed's trials until the rates are found, then the other seeds'."""
        search = self.rate_search(self.ranks)
        if first := self.missing_trials(search.wanted(evidence), evidence):
            return first
        best = {rank: best_learning_rate(of_rank(evidence, rank)) for rank in self.ranks}
        wanted = [
            (rank, rate, seed)
            for seed in range(self.seeds)
            for rank, rate in best.items()
            if rate is not None
        ]
        return self.missing_trials(wanted, evidence)

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the trials complete, the search's usual remainder, and the other seeds'."""
        left = self.rate_search(self.ranks).left(evidence)
        later = evidence[evidence["seed"] > 0].groupby(["rank", "seed"]).ngroups
        return count_trials(evidence) + left + len(self.ranks) * (self.seeds - 1) - later
