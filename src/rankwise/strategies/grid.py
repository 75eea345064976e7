"""The grid strategy: every rank with every seed, each rank at its best learning rate.

It stops when all trials are complete. It costs ranks x seeds trials and the search for learning
rates, and gives the fullest picture: the other strategies are measured against it.
"""

import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.trial_keys import (
    count_later_trials,
    count_trials,
    rank_evidence,
    seed_keys,
)


class Grid(Strategy):
    """Trains every rank with every seed, at the learning rate that the search found."""

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the search's trials until the rates are found, then all seeds at those rates."""
        search = self.rates.propose(self.ranks, evidence)
        if first := self.missing_trials(search, evidence):
            return first
        best = {rank: best_learning_rate(rank_evidence(evidence, rank)) for rank in self.ranks}
        return self.missing_trials(seed_keys(best, self.seeds), evidence)

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, the search's usual rest, and the other seeds' trials."""
        search = self.rates.remaining(self.ranks, evidence)
        later = len(self.ranks) * (self.seeds - 1) - count_later_trials(evidence, self.ranks)
        return count_trials(evidence) + search + later
