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
from rankwise.strategies.base import Strategy
from rankwise.strategies.trial_keys import (
    TrialKey,
    chosen_rate,
    count_trials,
    missing_keys,
    rank_evidence,
)


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
            return self.missing_trials(self._all_seeds(search[0].learning_rate), evidence)
        rate = chosen_rate(evidence, largest)
        if rate is None:
            return []
        trained = self._all_seeds(rate)
        to_train = self.missing_trials(trained, evidence)
        for trial in self.missing_trials(trained, evidence.iloc[:0]):
            if trial not in to_train and (truncations := self._truncations(trial, evidence)):
                return truncations
        return to_train

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials, the missing ones of the search, and those of other seeds."""
        largest = self.ranks[-1]
        search = missing_keys(self.rates.propose_alone(largest, evidence), evidence)
        trained = rank_evidence(evidence, largest)
        complete_seeds = trained.loc[trained["seed"] > 0, "seed"].nunique()
        # Truncations at a rate that has diverged since do not count.
        is_chosen = evidence["learning_rate"] == chosen_rate(evidence, largest)
        truncated = count_trials(evidence[is_chosen & (evidence["rank"] < largest)])
        truncations = max(0, (len(self.ranks) - 1) * self.seeds - truncated)
        return count_trials(evidence) + len(search) + self.seeds - 1 - complete_seeds + truncations

    def _all_seeds(self, rate: float) -> list[TrialKey]:
        return [TrialKey(self.ranks[-1], rate, seed) for seed in range(self.seeds)]

    def _truncations(self, source: Trial, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing truncations of a trained adapter, each with its source's scaling."""
        wanted = [TrialKey(rank, source.learning_rate, source.seed) for rank in self.ranks[:-1]]
        trials = []
        for key in missing_keys(wanted, evidence):
            share = key.rank / source.rank
            if source.use_rslora:
                share = math.sqrt(share)
            trials.append(
                replace(
                    source,
                    rank=key.rank,
                    lora_alpha=source.lora_alpha * share,
                    truncated_from=source.name,
                )
            )
        return trials
