"""More seeds for some ranks of a finished sweep, each at the learning rate that it has."""

import pandas as pd

from rankwise.engine.trial import Trial
from rankwise.strategies import trial_keys
from rankwise.strategies.base import Strategy


class MoreSeeds(Strategy):
    """Trains the ranks with the seeds that they lack; a rank without a rate is left out."""

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing trials, seed by seed."""
        rates = {rank: trial_keys.chosen_rate(evidence, rank) for rank in self.ranks}
        return self.missing_trials(trial_keys.seed_keys(rates, self.seeds), evidence)

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the number of complete and missing trials."""
        return trial_keys.count_trials(evidence) + len(self.propose(evidence))
