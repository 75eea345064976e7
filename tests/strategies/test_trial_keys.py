"""Look-ups of complete trials in evidence."""

import pandas as pd

from rankwise.strategies.trial_keys import (
    TrialKey,
    at_chosen_rates,
    chosen_rate,
    count_later_trials,
    count_trials,
    missing_keys,
    seed_keys,
)
from tests.factories import evidence_of

TRIALS = [
    evidence_of(4, 1e-3, 0, [0.5, 0.5]),
    evidence_of(4, 2e-3, 0, [0.4, 0.4]),
    evidence_of(4, 2e-3, 1, [0.4, 0.4]),
    evidence_of(8, 1e-3, 0, [0.6, 0.6]),
    evidence_of(8, 2e-3, 0, []),
]
EVIDENCE = pd.concat(TRIALS, ignore_index=True)


def test_every_rank_with_a_rate_gets_all_seeds_one_after_another() -> None:
    keys = [TrialKey(4, 1e-3, 0), TrialKey(8, 2e-3, 0), TrialKey(4, 1e-3, 1), TrialKey(8, 2e-3, 1)]
    assert seed_keys({4: 1e-3, 8: 2e-3, 16: None}, seeds=2) == keys


def test_missing_keys_keep_the_order_in_which_they_are_wanted() -> None:
    wanted = [TrialKey(8, 4e-3, 0), TrialKey(4, 1e-3, 0), TrialKey(4, 1e-3, 1)]
    assert missing_keys(wanted, EVIDENCE) == [wanted[0], wanted[2]]


def test_diverged_trials_count_as_complete() -> None:
    assert missing_keys([TrialKey(8, 2e-3, 0)], EVIDENCE) == []
    assert count_trials(EVIDENCE) == 5


def test_later_trials_are_those_after_the_first_seed() -> None:
    assert count_later_trials(EVIDENCE, [4, 8]) == 1
    assert count_later_trials(EVIDENCE, [8]) == 0


def test_the_chosen_rate_is_the_best_of_those_that_never_diverged() -> None:
    assert chosen_rate(EVIDENCE, 4) == 2e-3
    assert chosen_rate(EVIDENCE, 8) == 1e-3
    later = pd.concat([EVIDENCE, evidence_of(4, 2e-3, 2, [])])
    assert chosen_rate(later, 4) == 1e-3
    assert chosen_rate(evidence_of(4, 1e-3, 0, []), 4) is None


def test_only_the_chosen_rates_and_the_first_seeds_are_judged() -> None:
    judged = at_chosen_rates(EVIDENCE, [4, 8], seeds=1)
    assert set(judged[["rank", "learning_rate", "seed"]].itertuples(index=False, name=None)) == {
        (4, 2e-3, 0),
        (8, 1e-3, 0),
    }
    # A seed that an early look has not seen cannot change it.
    later = pd.concat([EVIDENCE, evidence_of(4, 2e-3, 2, [])])
    pd.testing.assert_frame_equal(at_chosen_rates(later, [4, 8], seeds=1), judged)
