"""What a strategy is, and how one is run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from rankwise.decide.evidence import Guess
from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.lora.alpha import AlphaPolicy
from rankwise.store.directory import SweepStore
from rankwise.strategies.learning_rates import Asked, RateSearch, missing


class Strategy(ABC):
    """Decides, from the evidence so far, which trials to run next.

    A strategy keeps no state: the same evidence gives the same answer, so a resumed sweep takes the same way as one
    that was never interrupted.

    Args:
        ranks: ascending.
        seeds: trials per rank, at most.
        learning_rate: ``"auto"``, or the rates to try.
        alpha: gives each rank its ``lora_alpha``.
        margin: of the decision, for strategies that judge on the way.
        confidence: likewise.
        guess_loss: held-out loss that says nothing is learnt, nats, where it is known.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        seeds: int,
        learning_rate: Literal["auto"] | Sequence[float],
        alpha: AlphaPolicy,
        margin: float,
        confidence: float,
        guess_loss: Guess | None = None,
    ) -> None:
        self.ranks = list(ranks)
        self.seeds = seeds
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.margin = margin
        self.confidence = confidence
        self.guess_loss = guess_loss

    def rate_search(self, ranks: Sequence[int]) -> RateSearch:
        """Return the search for these ranks' learning rates."""
        return RateSearch(ranks, self.learning_rate, self.alpha, self.guess_loss)

    @abstractmethod
    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the trials to run now, in order; none when the sweep is complete.

        Args:
            evidence: of all complete trials, as `read_evidence` returns it. Trials that are complete
                must not be proposed again.
        """

    @abstractmethod
    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Return how many trials the whole sweep will have, as far as can be told now."""

    def missing_trials(self, wanted: Iterable[Asked], evidence: pd.DataFrame) -> list[Trial]:
        """Return trials for what is not complete of what is wanted."""
        return [
            Trial(
                rank=rank,
                seed=seed,
                learning_rate=rate,
                lora_alpha=self.alpha.alpha(rank),
                use_rslora=self.alpha.use_rslora,
            )
            for rank, rate, seed in missing(wanted, evidence)
        ]


def run(
    strategy: Strategy,
    engine: Engine,
    store: SweepStore,
    settings: Mapping[str, Any],
    on_trial: Callable[[FinishedTrial], None] = lambda finished: None,
    on_plan: Callable[[int, int], None] = lambda complete, expected: None,
    budget: float | None = None,
) -> list[Trial]:
    """Run a strategy's trials until it proposes no more, keeping each as soon as it is finished.

    The strategy is asked again after every pack, so that the budget is looked at before each.

    Args:
        strategy: says what to run.
        engine: trains it.
        store: keeps it.
        settings: written into each trial's ``config.json`` beside the trial itself.
        on_trial: told of every finished trial.
        on_plan: told before each round how many trials are complete and how many are expected in all.
        budget: seconds of training and scoring, of all complete trials together; once they are spent no adapter is
            trained any more. Cuts of those that are there are still made.

    Returns:
        The trials that come next, which the budget left out; none when the sweep is complete.
    """
    while True:
        evidence = store.evidence()
        on_plan(len(store.trial_names()), strategy.expected_trials(evidence))
        trials = strategy.propose(evidence)
        cuts = [trial for trial in trials if trial.cut_from is not None]
        if not cuts and (not trials or (budget is not None and store.seconds_spent() >= budget)):
            return trials
        for finished in engine.train(cuts or trials[: engine.pack_size]):
            store.add(finished, settings)
            on_trial(finished)
