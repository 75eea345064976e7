"""Simulated sweeps: evidence with a known truth, and a loop that runs a strategy on it."""

import random
from collections.abc import Callable
from typing import Any

import pandas as pd

from rankwise.decide import Decision
from rankwise.decide.config import DecisionConfig
from rankwise.decide.evidence import HEALED, read_rank_results
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from rankwise.engine.trial import Trial
from rankwise.strategies import strategies
from rankwise.strategies.base import Strategy
from rankwise.strategies.config import SearchConfig
from tests.factories import NO_EVIDENCE, evidence_of

RANKS = (2, 4, 8, 16, 32)
MARGIN, CONFIDENCE = 0.02, 0.95
RULE = DecisionConfig(margin=MARGIN, confidence=CONFIDENCE)
EXAMPLES = 100
LOSS_BELOW_RANK_8 = {2: 0.70, 4: 0.60}  # the loss from rank 8 on is 0.5
Truth = Callable[[int], float]


def make_strategy(
    name: str, ranks: tuple[int, ...] = RANKS, seeds: int = 3, rates: Any = (1e-3,)
) -> Strategy:
    """Return a strategy with the simulated rule."""
    settings = SearchConfig(ranks=ranks, seeds=seeds, learning_rate=rates)
    return strategies()[name](settings, RULE)


def simulate_trial(trial: Trial, truth: Truth, noise: float) -> pd.DataFrame:
    """Return a trial's evidence, which depends on the trial alone.

    Hard examples are hard at every rank.
    """
    own_noise = random.Random(f"{trial.rank} {trial.seed} {trial.learning_rate}")
    level = truth(trial.rank) + own_noise.gauss(0, noise)
    difficulty = random.Random(0)
    losses = [
        level + difficulty.uniform(-0.3, 0.3) + own_noise.gauss(0, 0.02) for _ in range(EXAMPLES)
    ]
    rows = evidence_of(trial.rank, trial.learning_rate, trial.seed, losses, score=1.0)
    return rows if trial.starts_from is None else rows.assign(**{HEALED: True})


def run_sweep(
    strategy: Strategy,
    truth: Truth,
    start: pd.DataFrame = NO_EVIDENCE,
    noise: float = 1e-3,
) -> tuple[pd.DataFrame, list[Trial]]:
    """Run one proposed trial at a time; return all evidence and the trials, in order."""
    evidence, done = start, []
    while trials := strategy.propose(evidence):
        new = simulate_trial(trials[0], truth, noise)
        evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
        done.append(trials[0])
    return evidence, done


def decide_on(evidence: pd.DataFrame) -> Decision:
    """Return the decision on evidence by the simulated rule."""
    return decide(read_rank_results(evidence), Rule(margin=MARGIN, confidence=CONFIDENCE))


def ranks_in_order(trials: list[Trial]) -> list[int]:
    """Return the ranks of the trials, each where it comes first."""
    return list(dict.fromkeys(trial.rank for trial in trials))


def needs_rank_8(rank: int) -> float:
    """Return the true loss of a rank where rank 8 suffices."""
    return LOSS_BELOW_RANK_8.get(rank, 0.5)
