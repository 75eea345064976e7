"""The once strategy: the largest rank is trained alone, and truncated to all smaller ranks.

The first seed tries the rate where the other strategies' search starts and four times that rate,
and goes on upwards while it gains: an adapter trained at too low a rate says nothing. The other
seeds train at the best of these rates, and each adapter is truncated to every smaller rank. It
stops when all of these are scored, and costs a fifth to a third of the grid
(docs/results/strategies.md).

A truncated adapter is a trial of its own rank, with the seed and the learning rate of its source,
so no rank is favoured by its rate. The strategy answers which rank to *keep*: what the learned
change needs. It does not answer which rank to *train* at: an adapter trained at a small rank may
learn less in its steps than a truncated one holds.
"""

import math
from dataclasses import replace

import pandas as pd

from rankwise.engine.trial import Trial
from rankwise.strategies import trial_keys
from rankwise.strategies.base import Strategy
from rankwise.strategies.trial_keys import TrialKey


class Once(Strategy):
    """Trains the largest rank at one learning rate, and truncates its adapters to all others."""

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the truncations of a trained adapter, or else the trials to train."""
        largest = self.ranks[-1]
        search = self.rates.propose_alone(largest, evidence)
        if first := self.missing_trials(search, evidence):
            if len(search) > 1:
                return first
            # There is no rate to choose, so the other seeds may train together with the first.
            only = {largest: search[0].learning_rate}
            return self.missing_trials(trial_keys.seed_keys(only, self.seeds), evidence)
        chosen = {largest: trial_keys.chosen_rate(evidence, largest)}
        trained = trial_keys.seed_keys(chosen, self.seeds)
        to_train = self.missing_trials(trained, evidence)
        for trial in self.missing_trials(trained, evidence.iloc[:0]):
            if trial not in to_train and (truncations := self._truncations(trial, evidence)):
                return truncations
        return to_train

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, the missing ones of the search, and those of other seeds."""
        largest = self.ranks[-1]
        search = trial_keys.missing_keys(self.rates.propose_alone(largest, evidence), evidence)
        later = self.seeds - 1 - trial_keys.count_later_trials(evidence, [largest])
        # Truncations at a rate that has diverged since do not count.
        is_chosen = evidence["learning_rate"] == trial_keys.chosen_rate(evidence, largest)
        truncated = trial_keys.count_trials(evidence[is_chosen & (evidence["rank"] < largest)])
        truncations = max(0, (len(self.ranks) - 1) * self.seeds - truncated)
        return trial_keys.count_trials(evidence) + len(search) + later + truncations

    def _truncations(self, source: Trial, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing truncations of a trained adapter, each with its source's scaling."""
        wanted = [TrialKey(rank, source.learning_rate, source.seed) for rank in self.ranks[:-1]]
        trials = []
        for key in trial_keys.missing_keys(wanted, evidence):
            share = key.rank / source.rank
            alpha = source.lora_alpha * (math.sqrt(share) if source.use_rslora else share)
            truncated = replace(source, rank=key.rank, lora_alpha=alpha, truncated_from=source.name)
            trials.append(truncated)
        return trials
