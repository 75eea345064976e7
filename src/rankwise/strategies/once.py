"""The largest rank trained, every smaller one cut from it: which rank to keep, from one rank's training."""

import math
from dataclasses import replace

import pandas as pd

from rankwise.engine.trial import Trial
from rankwise.strategies.base import Strategy
from rankwise.strategies.learning_rates import count_trials, missing, rate_of_first_seed


class Once(Strategy):
    """Trains the largest rank alone, at one learning rate, and cuts each of its adapters to all smaller ranks.

    The first seed tries about the rate where the search of the other strategies starts and four times that, and goes on
    upwards while it gains: too low a rate leaves an adapter of which nothing can be said. The whole search is made only
    where the start learns nothing or diverges. Cuts of one adapter share its rate, so no rank is favoured by it.

    A cut is a trial of its own rank, and of the seed and learning rate of what it is cut from. It answers which rank to
    *keep*: what the change that was learned needs. Which rank to *train* at it does not ask: a rank trained by itself
    may learn less in the steps that it is given than its cut holds.
    """

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the cuts of a trained adapter, or else the trials to train."""
        largest = self.ranks[-1]
        search = self.rate_search([largest])
        asked = search.wanted_of_one(evidence)
        if first := self.missing_trials(asked, evidence):
            if len(asked) == 1:  # no rate to choose, so the other seeds may train beside the first
                asked = [(largest, asked[0][1], seed) for seed in range(self.seeds)]
                return self.missing_trials(asked, evidence)
            return first
        rate = rate_of_first_seed(evidence, largest)
        if rate is None:
            return []
        wanted = [(largest, rate, seed) for seed in range(self.seeds)]
        to_train = self.missing_trials(wanted, evidence)
        for trial in self.missing_trials(wanted, evidence.iloc[:0]):
            if trial not in to_train and (cuts := self._cuts(trial, evidence)):
                return cuts
        return to_train

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the trials complete, the search's usual remainder, the other seeds', and the cuts of all seeds'."""
        own = evidence[evidence["rank"] == self.ranks[-1]]
        search = self.rate_search(self.ranks[-1:])
        left = len(missing(search.wanted_of_one(evidence), evidence))
        seeds = self.seeds - 1 - own.loc[own["seed"] > 0, "seed"].nunique()
        # Cuts of a rate that has diverged since do not count.
        made = evidence["learning_rate"] == rate_of_first_seed(evidence, self.ranks[-1])
        cuts = (len(self.ranks) - 1) * self.seeds - count_trials(
            evidence[made & (evidence["rank"] < self.ranks[-1])]
        )
        return count_trials(evidence) + left + seeds + max(0, cuts)

    def _cuts(self, trained: Trial, evidence: pd.DataFrame) -> list[Trial]:
        """Return the missing cuts of a trained trial, each with the scaling of what it is cut from."""
        shares = {rank: rank / trained.rank for rank in self.ranks[:-1]}
        if trained.use_rslora:
            shares = {rank: math.sqrt(share) for rank, share in shares.items()}
        wanted = [(rank, trained.learning_rate, trained.seed) for rank in shares]
        return [
            replace(
                trained,
                rank=rank,
                lora_alpha=trained.lora_alpha * shares[rank],
                truncated_from=trained.name,
            )
            for rank, _, _ in missing(wanted, evidence)
        ]
