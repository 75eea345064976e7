"""What a strategy is, and how one is run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.store import SweepStore


class Strategy(ABC):
    """Decides, from the evidence so far, which trials to run next.

    A strategy keeps no state: the same evidence gives the same answer, so a resumed sweep takes the same way as one
    that was never interrupted.
    """

    @abstractmethod
    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the trials to run now, in order; none when the sweep is complete.

        Args:
            evidence: of all complete trials, as `rankwise.store.read_evidence` returns it. Trials that are complete
                must not be proposed again.
        """

    @abstractmethod
    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return how many trials the whole sweep will have, as far as can be told now."""


def run(
    strategy: Strategy,
    engine: Engine,
    store: SweepStore,
    settings: Mapping[str, Any],
    on_trial: Callable[[FinishedTrial], None] = lambda finished: None,
    on_plan: Callable[[int, int], None] = lambda complete, expected: None,
) -> None:
    """Run a strategy's trials until it proposes no more, keeping each as soon as it is finished.

    Args:
        strategy: says what to run.
        engine: trains it.
        store: keeps it.
        settings: written into each trial's ``config.json`` beside the trial itself.
        on_trial: told of every finished trial.
        on_plan: told before each round how many trials are complete and how many are expected in all.
    """
    while True:
        evidence = store.evidence()
        on_plan(len(store.trial_names()), strategy.expected_trials(evidence))
        trials = strategy.propose(evidence)
        if not trials:
            return
        for finished in engine.train(trials):
            store.add(finished, settings)
            on_trial(finished)
