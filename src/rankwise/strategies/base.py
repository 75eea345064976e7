"""What a strategy is, and how one is run."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd

from rankwise.decide.evidence import ChanceLoss
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import AlphaPolicy
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
        chance_loss: held-out loss that says nothing is learnt, nats, where it is known.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        seeds: int,
        learning_rate: Literal["auto"] | Sequence[float],
        alpha: AlphaPolicy,
        margin: float,
        confidence: float,
        chance_loss: ChanceLoss | None = None,
    ) -> None:
        self.ranks = list(ranks)
        self.seeds = seeds
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.margin = margin
        self.confidence = confidence
        self.chance_loss = chance_loss

    def rate_search(self, ranks: Sequence[int]) -> RateSearch:
        """Return the search for these ranks' learning rates."""
        return RateSearch(ranks, self.learning_rate, self.alpha, self.chance_loss)

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
