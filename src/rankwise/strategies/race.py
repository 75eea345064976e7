"""The race strategy: all ranks seed by seed, without those shown to be worse.

After the second seed and each further one, a rank drops out when its held-out loss is shown to be
above another rank's by more than the margin. The race ends as soon as the decision's rule selects
a rank, one rank is left, or the seeds are used up. It costs at most what the grid costs, and saves
most with many ranks or seeds.

The idea is that of Hoeffding races (Maron and Moore 1994), but with the paired bounds of the
decision. Each look has its share of the errors that the confidence allows (Bonferroni), and so has
the decision at the end, or looking often would make a wrong choice likelier. Only finished trials
are compared: early steps favour ranks that learn fast, not those that end well.
"""

from dataclasses import replace

import pandas as pd

from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Findings
from rankwise.engine.trial import Trial
from rankwise.strategies import trial_keys
from rankwise.strategies.base import Strategy
from rankwise.strategies.config import SearchConfig

FIRST_LOOK = 2  # seeds before the first comparison: one seed does not show how much seeds vary


class Race(Strategy):
    """Trains every rank with one seed after another, and drops ranks that are shown to be worse."""

    @staticmethod
    def looks(settings: SearchConfig) -> int:
        """Return the number of seeds after which the evidence is looked at."""
        return max(1, settings.seeds - FIRST_LOOK + 1)

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the search's trials until the rates are found, then one seed after another."""
        return self._replay(evidence)[1]

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, the search's usual rest, and the racing ranks' seeds."""
        racing, trials = self._replay(evidence)
        if not trials:
            return trial_keys.count_trials(evidence)
        search = self.rates.remaining(self.ranks, evidence)
        later = len(racing) * (self.seeds - 1) - trial_keys.count_later_trials(evidence, racing)
        return trial_keys.count_trials(evidence) + max(len(trials), search + later)

    def _replay(self, evidence: pd.DataFrame) -> tuple[list[int], list[Trial]]:
        """Return the ranks still racing and their missing trials, after all looks so far."""
        racing = self.ranks
        search = self.rates.propose(self.ranks, evidence)
        if first := self.missing_trials(search, evidence):
            return racing, first
        for seeds in range(min(FIRST_LOOK, self.seeds), self.seeds + 1):
            early = evidence[evidence["seed"] < seeds]
            chosen = {rank: trial_keys.chosen_rate(early, rank) for rank in racing}
            if trials := self.missing_trials(trial_keys.seed_keys(chosen, seeds), evidence):
                return racing, trials
            judged = trial_keys.at_chosen_rates(evidence, self.ranks, seeds)
            racing = self._still_racing(judged, racing)
            if len(racing) < 2:
                break
        return racing, []

    def _still_racing(self, evidence: pd.DataFrame, racing: list[int]) -> list[int]:
        """Return the ranks that race on; none once the rule selects a rank."""
        if evidence.empty:
            return []
        rule = replace(self.rule, chance_loss=self.chance_loss)
        findings = Findings(read_rank_results(evidence), rule)
        if findings.fitting:
            return []
        usable = [rank for rank in racing if rank in findings.comparison.ranks]
        return [rank for rank in usable if not findings.is_shown_worse(rank)]
