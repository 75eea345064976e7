"""Ends on simulated sweeps: which ranks it trains, and what it decides."""

import pytest

from tests.factories import NO_EVIDENCE
from tests.strategies.simulation import (
    Truth,
    decide_on,
    make_strategy,
    needs_rank_8,
    ranks_in_order,
    run_sweep,
)

LADDER = (1, 2, 4, 8, 16, 32, 64)


def needs(rank: int) -> Truth:
    """Return true losses that fall until this rank."""
    return lambda each: 0.5 if each >= rank else 0.6


@pytest.mark.parametrize(
    ("enough", "visited"),
    [
        (1, [64, 1]),  # two trainings a seed
        (2, [64, 1, 8, 2]),
        (4, [64, 1, 8, 2, 4]),
        (8, [64, 1, 8, 2, 4]),
        (16, [64, 1, 8, 16]),
        (32, [64, 1, 8, 16, 32]),
        (64, [64, 1, 8, 16, 32]),
    ],
)
def test_the_ends_come_first_and_bisection_finds_the_rank(enough: int, visited: list[int]) -> None:
    evidence, trials = run_sweep(make_strategy("ends", LADDER, seeds=3), needs(enough))
    assert ranks_in_order(trials) == visited
    assert len(trials) == 3 * len(visited)
    assert decide_on(evidence).rank == enough


def test_all_trials_of_both_ends_may_train_together() -> None:
    strategy = make_strategy("ends", LADDER, seeds=2)
    (first,) = strategy.propose(NO_EVIDENCE)
    assert (first.rank, first.seed) == (64, 0)
    evidence, _ = run_sweep(strategy, needs(1))
    after_search = evidence[(evidence["rank"] == 64) & (evidence["seed"] == 0)]
    assert [(trial.rank, trial.seed) for trial in strategy.propose(after_search)] == [
        (64, 1),
        (1, 0),
    ]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_an_interrupted_sweep_takes_the_same_course(stop: int) -> None:
    _, trials = run_sweep(make_strategy("ends", seeds=2), needs_rank_8)
    evidence, _ = run_sweep(make_strategy("ends", seeds=2), needs_rank_8)
    names = {trial.name for trial in trials[:stop]}
    seen = [
        f"r{row.rank}-lr{row.learning_rate:g}-seed{row.seed}" in names
        for row in evidence.itertuples()
    ]
    _, done = run_sweep(make_strategy("ends", seeds=2), needs_rank_8, evidence[seen])
    assert [trial.name for trial in done] == [trial.name for trial in trials[stop:]]


def test_expected_trials_end_at_those_that_ran() -> None:
    strategy = make_strategy("ends", LADDER, seeds=2)
    evidence, trials = run_sweep(strategy, needs(4))
    assert strategy.expected_trials(evidence) == len(trials)
    assert strategy.expected_trials(NO_EVIDENCE) >= 2


def test_a_look_at_the_ends_has_half_of_the_error_where_bisection_may_follow() -> None:
    confidences = [
        make_strategy("ends", ranks).rule.confidence_of_a_look for ranks in ((1, 64), LADDER)
    ]
    assert confidences == pytest.approx([0.95, 0.975])


def test_a_single_rank_is_trained_with_all_seeds() -> None:
    _, trials = run_sweep(make_strategy("ends", (8,), seeds=2), needs(1))
    assert [(trial.rank, trial.seed) for trial in trials] == [(8, 0), (8, 1)]
