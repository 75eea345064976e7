"""The once strategy: the largest rank is trained alone, truncated, and healed once.

The largest rank is trained at the first learning rate and at the next higher, each with a seed of
its own, and at higher ones while that pays (`RateSearch.propose_few`). The best adapter is kept.
With more seeds than two, the first tries the rates, and the others train at the rate found. Each
adapter kept is truncated rank by rank, from the largest down, until the cuts of one rank are not
shown to be within the margin of the full adapters: a fixed sequence
(`rankwise.decide.sequential`), tested seed by seed. The cuts of that rank are healed: trained on
for a tenth of the steps, at a quarter of the learning rate that the law gives for their rank and
scaling (`rankwise.lora.alpha.carried_rate`; docs/results/strategies.md says why). Where the healed
adapters are within the margin, they are handed over; otherwise the smallest cut that is.

A truncated adapter is a trial of its own rank, with the seed and the learning rate of its source,
so no rank is favoured by its rate. The strategy answers which rank to *keep*: what the learned
change needs. It does not answer which rank to *train* at: an adapter trained at a small rank may
learn less in its steps than a truncated one holds.
"""

import itertools
import math
from dataclasses import replace

import pandas as pd

from rankwise.decide.healed import LOOKS, holds
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import carried_rate, parse_alpha_policy
from rankwise.strategies import trial_keys
from rankwise.strategies.base import Strategy
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.learning_rates import GivenRates
from rankwise.strategies.trial_keys import TrialKey

HEALING_SHARE = 0.1  # of the steps of a whole training
HEALING_RATE = 0.25  # of the law's learning rate
SAME_SCALING = parse_alpha_policy("r")  # a truncated adapter keeps the scaling of its source


class Once(Strategy):
    """Trains the largest rank, truncates it while the cuts hold, and heals the first that fails."""

    @staticmethod
    def looks(settings: SearchConfig) -> int:
        """Return 2: the cuts are judged, and then a healed one."""
        return LOOKS

    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the trials to train, then cuts of one rank after another, then those to heal."""
        largest = self.ranks[-1]
        search = self.rates.propose_few(largest, evidence)
        if first := self.missing_trials(search, evidence):
            if len(search) > 1:
                return first
            # There is no rate to choose, so the other seeds may train together with the first.
            only = {largest: search[0].learning_rate}
            return self.missing_trials(trial_keys.seed_keys(only, self.seeds), evidence)
        rate = trial_keys.chosen_rate(evidence, largest)
        trained = self._kept(rate, evidence)
        to_train = self.missing_trials(trained, evidence)
        sources = self.missing_trials(trained, evidence.iloc[:0])
        complete = [trial for trial in sources if trial not in to_train]
        cuts, failed = self._first_failing(complete, evidence) if complete else ([], None)
        if cuts or to_train or rate is None or not self.can_heal:
            return cuts or to_train
        healed = []
        for rank in self.ranks[:-1]:
            if rank == failed or self._is_healed(rank, rate, evidence):
                healed += self._missing_healed(sources, rank, evidence)
        return healed

    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return the complete trials and the missing ones, if every rank is truncated to."""
        largest = self.ranks[-1]
        complete = trial_keys.count_trials(evidence)
        next_ones = self.propose(evidence)
        if not next_ones or next_ones[0].starts_from is not None:
            return complete + len(next_ones)
        search = trial_keys.missing_keys(self.rates.propose_few(largest, evidence), evidence)
        rate = trial_keys.chosen_rate(evidence, largest)
        kept = self._kept(rate, evidence)
        later = len(self.rates.later_seeds(self.seeds))
        adapters = max(1 + later, len(kept))
        # Truncations at a rate that has diverged since do not count.
        is_chosen = evidence["learning_rate"] == rate
        truncated = trial_keys.count_trials(evidence[is_chosen & (evidence["rank"] < largest)])
        truncations = max(0, (len(self.ranks) - 1) * adapters - truncated)
        if kept:
            later = len(trial_keys.missing_keys(kept, evidence))
        return complete + len(search) + later + truncations

    def _kept(self, rate: float | None, evidence: pd.DataFrame) -> list[TrialKey]:
        """Return the adapters to truncate: the search's at the best rate, and the later seeds'."""
        if rate is None:
            return []
        largest = self.ranks[-1]
        trained = trial_keys.rank_evidence(evidence, largest)
        seeds = {int(seed) for seed in trained.loc[trained["learning_rate"] == rate, "seed"]}
        seeds.update(self.rates.later_seeds(self.seeds))
        return [TrialKey(largest, rate, seed) for seed in sorted(seeds)]

    def _first_failing(
        self, sources: list[Trial], evidence: pd.DataFrame
    ) -> tuple[list[Trial], int | None]:
        """Return the missing cuts of the rank that the sequence has reached, or else its end.

        Returns:
            Cuts to score; and the first rank that does not hold, None if all do. A rank below it
            that was reached with fewer seeds gets the others too.
        """
        rate = sources[0].learning_rate
        at_rate = evidence[evidence["learning_rate"] == rate]
        full = trial_keys.rank_evidence(at_rate, self.ranks[-1])
        margin = LOSS_MARGIN if self.rule.margin is None else self.rule.margin
        failed: int | None = None
        for rank in reversed(self.ranks[:-1]):
            cuts = trial_keys.rank_evidence(at_rate, rank)
            if failed is not None and cuts.empty:
                continue
            wanted = [self._cut(source, rank) for source in sources]
            if missing := _missing(wanted, evidence):
                return missing, None
            if failed is None and not holds(cuts, full, margin, self.rule.confidence_of_a_look):
                failed = rank
        return [], failed

    def _cut(self, source: Trial, rank: int) -> Trial:
        """Return the truncation of a trained adapter, with its source's scaling."""
        share = rank / source.rank
        alpha = source.lora_alpha * (math.sqrt(share) if source.use_rslora else share)
        return replace(source, rank=rank, lora_alpha=alpha, truncated_from=source.name)

    def _missing_healed(
        self, sources: list[Trial], rank: int, evidence: pd.DataFrame
    ) -> list[Trial]:
        healed = []
        for source in sources:
            cut = self._cut(source, rank)
            healed.append(
                replace(
                    cut,
                    truncated_from=None,
                    starts_from=cut.name,
                    learning_rate=self._healing_rate(rank, source.learning_rate),
                    share_of_steps=HEALING_SHARE,
                )
            )
        return _missing(healed, evidence)

    def _is_healed(self, rank: int, rate: float, evidence: pd.DataFrame) -> bool:
        at_rank = trial_keys.rank_evidence(evidence, rank)
        return bool((at_rank["learning_rate"] == self._healing_rate(rank, rate)).any())

    def _healing_rate(self, rank: int, rate: float) -> float:
        """Return a quarter of the law's rate, with three digits and a fourth, a 5.

        Rank, rate and seed tell trials apart, so no cut may have this rate, whichever rate its
        source is trained at: a search tries rates with three digits, and given rates are avoided.
        """
        quarter = HEALING_RATE * carried_rate(rate, self.ranks[-1], rank, SAME_SCALING)
        digits, exponent = f"{quarter:.2e}".split("e")
        given = self.rates.rates if isinstance(self.rates, GivenRates) else ()
        rates = (float(f"{digits}{fourth}e{exponent}") for fourth in itertools.count(5))
        return next(healing for healing in rates if healing not in given)


def _missing(trials: list[Trial], evidence: pd.DataFrame) -> list[Trial]:
    keys = [TrialKey(trial.rank, trial.learning_rate, trial.seed) for trial in trials]
    missing = trial_keys.missing_keys(keys, evidence)
    return [trial for trial, key in zip(trials, keys, strict=True) if key in missing]
