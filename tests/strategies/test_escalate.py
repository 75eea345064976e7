"""Escalate on simulated sweeps: which ranks it visits, and where it stops."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from rankwise.strategies.trial_keys import chosen_rate
from tests.factories import NO_EVIDENCE
from tests.strategies.simulation import (
    EXAMPLES,
    Truth,
    decide_on,
    make_strategy,
    needs_rank_8,
    ranks_in_order,
    run_sweep,
    simulate_trial,
)


@pytest.mark.parametrize(
    ("truth", "order", "chosen"),
    [
        (lambda rank: 0.5, [8, 16, 4, 2], 2),  # nothing gained above, nothing lost below
        (needs_rank_8, [8, 16, 4], 8),
        (lambda rank: 0.9 - 0.1 * (rank >= 16) - 0.1 * (rank >= 32), [8, 16, 32], 32),
        (lambda rank: 0.9 - 0.1 * (rank >= 16), [8, 16, 32], 16),
    ],
)
def test_escalate_climbs_while_it_gains_and_descends_while_nothing_is_lost(
    truth: Truth, order: list[int], chosen: int
) -> None:
    evidence, trials = run_sweep(make_strategy("escalate"), truth)
    assert ranks_in_order(trials) == order
    assert all(sum(trial.rank == rank for trial in trials) == 3 for rank in order)
    assert decide_on(evidence).rank == chosen


def test_escalate_starts_at_the_second_smallest_rank_without_rank_8() -> None:
    assert {trial.rank for trial in make_strategy("escalate", (3, 6, 12)).propose(NO_EVIDENCE)} == {
        6
    }
    assert {trial.rank for trial in make_strategy("escalate", (16, 32)).propose(NO_EVIDENCE)} == {
        32
    }


def test_escalate_carries_the_learning_rate_of_its_first_rank() -> None:
    """The rate falls as the square root of the rank; below rank 4 its neighbours are tried too."""
    _, trials = run_sweep(make_strategy("escalate", rates="auto"), lambda rank: 0.5)
    rates = {
        rank: {trial.learning_rate for trial in trials if trial.rank == rank}
        for rank in (8, 16, 4, 2)
    }
    assert len(rates[8]) > 2
    (best,) = {trial.learning_rate for trial in trials if trial.rank == 8 and trial.seed == 1}
    for rank in (16, 4):
        (taken,) = rates[rank]
        assert taken == pytest.approx(best * (8 / rank) ** 0.5, rel=5e-3)
    assert len(rates[2]) > 2


def test_escalate_tries_other_rates_at_a_rank_that_falls_behind() -> None:
    """Rank 4 is as good as rank 8, but at half of the rate that the law gives it."""
    strategy = make_strategy("escalate", (4, 8, 16), seeds=1, rates="auto")
    evidence = NO_EVIDENCE
    while trials := strategy.propose(evidence):
        trial = trials[0]
        best = 2e-3 / trial.rank**0.5 / (1 + (trial.rank == 4))
        loss = 0.5 + 0.1 * abs(math.log2(trial.learning_rate / best))
        rows = simulate_trial(trial, lambda rank, loss=loss: loss, 1e-3)
        evidence = pd.concat([evidence, rows], ignore_index=True) if len(evidence) else rows
    assert chosen_rate(evidence, 4) == 5e-4
    assert decide_on(evidence).rank == 4


def test_escalate_expects_every_given_rate_of_the_rank_it_has_reached() -> None:
    strategy = make_strategy("escalate", rates=(1e-3, 2e-3, 4e-3))
    whole, trials = run_sweep(strategy, lambda rank: 0.5)
    of_one = 3 + 2  # rates, and two more seeds at one of them
    assert len(trials) == 4 * of_one  # 8, 16, 4, 2
    for complete in range(0, len(trials), 3):  # at, before and after the end of a rank
        rank_complete = -(-(complete + 1) // of_one) * of_one
        assert strategy.expected_trials(whole.iloc[: complete * EXAMPLES]) == rank_complete


def test_escalate_searches_again_after_a_neighbour_that_always_diverged() -> None:
    strategy = make_strategy("escalate", (4, 8), rates="auto")
    evidence = NO_EVIDENCE
    while trials := [trial for trial in strategy.propose(evidence) if trial.rank == 8]:
        rows = simulate_trial(trials[0], needs_rank_8, 1e-3).assign(diverged=True)
        evidence = pd.concat([evidence, rows], ignore_index=True) if len(evidence) else rows
    assert (
        len({trial.learning_rate for trial in strategy.propose(evidence) if trial.rank == 4}) == 3
    )


def test_escalate_gives_more_seeds_to_ranks_it_would_no_longer_visit() -> None:
    """With one seed it climbed to 32 by luck; with three it turns at 16."""
    turned, trials = run_sweep(make_strategy("escalate"), lambda rank: 0.5)
    assert 32 not in ranks_in_order(trials)
    stray = simulate_trial(
        replace(trials[0], rank=32, seed=0, lora_alpha=32.0), lambda rank: 0.5, 1e-3
    )
    extended, more = run_sweep(
        make_strategy("escalate"), lambda rank: 0.5, pd.concat([turned, stray], ignore_index=True)
    )
    assert [(trial.rank, trial.seed) for trial in more] == [(32, 1), (32, 2)]
    assert (extended.groupby("rank")["seed"].nunique() == 3).all()
