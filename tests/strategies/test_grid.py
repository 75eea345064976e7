"""The grid on simulated sweeps: which trials it runs, and how it is extended."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from rankwise.decide.config import DecisionConfig
from rankwise.engine.trial import Trial
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.grid import Grid
from tests.factories import NO_EVIDENCE, evidence_of

RANKS = (4, 8, 16, 32)
Loss = Callable[[int, float, int], float]


def grid(
    learning_rate: Any = "auto", ranks: tuple[int, ...] = RANKS, seeds: int = 2, alpha: str = "r"
) -> Grid:
    settings = SearchConfig(ranks=ranks, seeds=seeds, learning_rate=learning_rate, lora_alpha=alpha)
    return Grid(settings, DecisionConfig())


def grid_evidence(trial: Trial, loss: float) -> pd.DataFrame:
    """Return the evidence of a trial whose examples differ a little in their losses."""
    losses = [loss + 1e-4 * (example % 2) * trial.learning_rate for example in range(4)]
    usable = losses if math.isfinite(loss) else []
    return evidence_of(trial.rank, trial.learning_rate, trial.seed, usable)


def run_grid(
    strategy: Grid, loss: Loss, stop_after: int | None = None, start: pd.DataFrame | None = None
) -> pd.DataFrame:
    evidence = NO_EVIDENCE if start is None else start
    done = 0
    while trials := strategy.propose(evidence):
        for trial in trials:
            new = grid_evidence(trial, loss(trial.rank, trial.learning_rate, trial.seed))
            evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
            done += 1
            if done == stop_after:
                return evidence
    return evidence


def valley(best: Callable[[int], float]) -> Loss:
    """A loss that grows with the distance from a rank's best rate, in octaves."""
    return lambda rank, rate, seed: 0.5 + 0.02 * math.log2(rate / best(rank)) ** 2 + 1e-3 * seed


def trials_of(evidence: pd.DataFrame) -> set[tuple[int, float, int]]:
    keys = evidence[["rank", "learning_rate", "seed"]].drop_duplicates()
    return set(keys.itertuples(index=False, name=None))


def test_a_grid_stopped_anywhere_runs_the_same_trials() -> None:
    loss = valley(lambda rank: 6e-4)
    whole = run_grid(grid(), loss)
    for stop in range(1, len(trials_of(whole)), 3):
        part = run_grid(grid(), loss, stop_after=stop)
        assert trials_of(run_grid(grid(), loss, start=part)) == trials_of(whole)


def test_more_seeds_extend_the_same_trials() -> None:
    loss = valley(lambda rank: 6e-4)
    two, four = run_grid(grid(seeds=2), loss), run_grid(grid(seeds=4), loss)
    extended = run_grid(grid(seeds=4), loss, start=two)
    assert trials_of(two) < trials_of(four) == trials_of(extended)


def test_all_given_rates_are_tried_and_the_best_gets_more_seeds() -> None:
    evidence = run_grid(
        grid([1e-3, 4e-3], seeds=3), valley(lambda rank: 1e-3 if rank > 8 else 4e-3)
    )
    assert trials_of(evidence) == {
        *((rank, rate, 0) for rank in RANKS for rate in (1e-3, 4e-3)),
        *((rank, 1e-3 if rank > 8 else 4e-3, seed) for rank in RANKS for seed in (1, 2)),
    }


def test_one_given_rate_makes_a_plain_grid() -> None:
    evidence = run_grid(grid([1e-3], seeds=2), valley(lambda rank: 1e-3))
    assert trials_of(evidence) == {(rank, 1e-3, seed) for rank in RANKS for seed in (0, 1)}


def test_trials_get_lora_alpha_from_the_policy() -> None:
    trials = grid([1e-3], alpha="rslora:8").propose(NO_EVIDENCE)
    assert {(trial.rank, trial.lora_alpha, trial.use_rslora) for trial in trials} == {
        (r, 8, True) for r in RANKS
    }
    assert [trial.lora_alpha for trial in grid([1e-3], alpha="2r").propose(NO_EVIDENCE)] == [
        8,
        16,
        32,
        64,
    ]


def test_expected_trials_become_exact() -> None:
    loss = valley(lambda rank: 6e-4)
    whole = run_grid(grid(), loss)
    assert grid().expected_trials(whole) == len(trials_of(whole))
    assert grid([1e-3]).expected_trials(whole.iloc[:0]) == 8
