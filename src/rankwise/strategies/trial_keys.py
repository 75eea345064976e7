"""Keys of trials, and look-ups of complete trials in a sweep's evidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from rankwise.decide import best_learning_rate

SEARCH_SEEDS = 2  # seeds that a search for learning rates may use


class TrialKey(NamedTuple):
    """Rank, learning rate and seed, which together identify a trial of a sweep."""

    rank: int
    learning_rate: float
    seed: int


def seed_keys(rates: Mapping[int, float | None], seeds: int) -> list[TrialKey]:
    """Return trials of every seed, for each rank at its rate; ranks without a rate are left out."""
    usable = {rank: rate for rank, rate in rates.items() if rate is not None}
    return [TrialKey(rank, rate, seed) for seed in range(seeds) for rank, rate in usable.items()]


def missing_keys(wanted: Iterable[TrialKey], evidence: pd.DataFrame) -> list[TrialKey]:
    """Return the wanted trials that are not complete, in the order given."""
    keys = evidence[["rank", "learning_rate", "seed"]].drop_duplicates()
    complete = set(keys.itertuples(index=False, name=None))
    return [key for key in wanted if key not in complete]


def count_trials(evidence: pd.DataFrame) -> int:
    """Return the number of complete trials."""
    return int(evidence.groupby(["rank", "learning_rate", "seed"]).ngroups)


def count_later_trials(evidence: pd.DataFrame, ranks: Sequence[int]) -> int:
    """Return the number of (rank, seed) pairs that are complete after the first seed."""
    later = evidence[(evidence["seed"] > 0) & evidence["rank"].isin(ranks)]
    return int(later.groupby(["rank", "seed"]).ngroups)


def rank_evidence(evidence: pd.DataFrame, rank: int) -> pd.DataFrame:
    """Return the evidence of one rank."""
    return evidence[evidence["rank"] == rank]


def first_seed(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the evidence of the first seed, with which most learning rates are tried."""
    return evidence[evidence["seed"] == 0]


def chosen_rate(evidence: pd.DataFrame, rank: int) -> float | None:
    """Return the rate that the search found for a rank, among those where no seed diverged."""
    trials = rank_evidence(evidence, rank)
    diverged = trials["diverged"].astype(bool)
    return best_learning_rate(trials[(trials["seed"] < SEARCH_SEEDS) | diverged])


def at_chosen_rates(evidence: pd.DataFrame, ranks: Sequence[int], seeds: int) -> pd.DataFrame:
    """Return the evidence that a strategy judges midway: each rank at its chosen rate.

    Only the first ``seeds`` seeds count, because a resumed sweep has seen more and would decide
    differently. Ranks without a rate are left out.
    """
    early = evidence[evidence["seed"] < seeds]
    parts = []
    for rank in ranks:
        trials = rank_evidence(early, rank)
        parts.append(trials[trials["learning_rate"] == chosen_rate(early, rank)])
    return pd.concat(parts, ignore_index=True)
