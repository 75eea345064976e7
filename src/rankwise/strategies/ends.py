"""The ends strategy: the largest and the smallest rank first, those between only if needed.

The largest rank searches its learning rate, and the smallest takes that rate carried by the law
(`rankwise.lora.alpha.carried_rate`). Both train with all seeds. If the smallest is shown to be
within the margin of the largest, the sweep ends: two trainings a seed answer at which rank to
train. Otherwise it looks for the smallest rank that is, by bisection: the rank in the middle of
those left is trained and judged, and halves them. Of the five ranks between 1 and 64 that takes two
or three; going up from the smallest one by one would take as many where a small rank suffices and
up to five where none does.

Bisection takes a rank that is not shown to hold for a sign that all smaller ones fail. Where that
is wrong, the answer is a larger rank than needed, never one that is not shown to hold: the decision
compares all ranks that were trained.
"""

import pandas as pd

from rankwise.engine.trial import Trial
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.escalate import Escalate


class Ends(Escalate):
    """Trains the largest and the smallest rank, then bisects the ranks between."""

    @staticmethod
    def looks(settings: SearchConfig) -> int:
        """Return 2: at both ends, and at the bisected ranks; with two ranks there is one look.

        All looks of the bisection share one half, since each compares all ranks trained so far at
        once. In simulations that holds the error (docs/strategies.md), which one look did not.
        """
        return min(2, max(1, len(settings.ranks) - 1))

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks visited so far, in order, and the missing trials of the last one."""
        largest, smallest = self.ranks[-1], self.ranks[0]
        visited = [largest]
        search = self.rates.propose_alone(largest, evidence)
        if trials := self.missing_trials(search, evidence):
            return visited, trials
        # Seeds of the largest and trials of the smallest rank may train together.
        trials = self._missing_seeds(largest, evidence)
        if smallest != largest:
            visited.append(smallest)
            trials += self._missing(smallest, evidence, largest)
        if trials:
            return visited, trials
        low, high = 0, len(self.ranks) - 1  # places of a rank that fails, and of one that holds
        if self._suffices(evidence, smallest, visited):
            high = 0
        while high - low > 1:
            middle = (low + high) // 2
            rank = self.ranks[middle]
            visited.append(rank)
            if trials := self._missing(rank, evidence, largest):
                return visited, trials
            if self._suffices(evidence, rank, visited):
                high = middle
            else:
                low = middle
        return self._with_fewer_seeds(visited, evidence)
