"""The interface of a strategy: it proposes the next trials from the evidence so far."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import pandas as pd

from rankwise.decide.config import DecisionConfig
from rankwise.decide.evidence import ChanceLoss
from rankwise.decide.findings import Rule
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import USUAL_STEPS, parse_alpha_policy
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.learning_rates import make_rate_search
from rankwise.strategies.trial_keys import TrialKey, missing_keys


class Strategy(ABC):
    """Decides from the evidence so far which trials to run next.

    A strategy keeps no state: equal evidence gives equal trials, so an interrupted sweep takes
    the same course once it is resumed.

    Args:
        settings: ranks, seeds, learning rates and policy for ``lora_alpha``.
        rule: margin and confidence of the decision, for strategies that stop early.
        chance_loss: chance-level held-out loss, nats; None if unknown.
        task_type: PEFT's name of the task, ``SEQ_CLS`` or ``CAUSAL_LM``.
        steps: optimizer steps of a trial.
    """

    can_heal = True  # whether training can start from a cut, as a user's trainer cannot

    def __init__(
        self,
        settings: SearchConfig,
        rule: DecisionConfig,
        chance_loss: ChanceLoss | None = None,
        task_type: str = "SEQ_CLS",
        steps: int = USUAL_STEPS,
    ) -> None:
        self.ranks = list(settings.ranks)  # ascending
        self.seeds = settings.seeds
        self.alpha = parse_alpha_policy(settings.lora_alpha)
        self.rates = make_rate_search(
            settings.learning_rate, self.alpha, task_type, chance_loss, settings.seeds, steps
        )
        self.rule = Rule(
            margin=rule.margin,
            confidence=rule.confidence,
            no_prior=rule.no_prior,
            looks=self.looks(settings),
        )
        self.chance_loss = chance_loss

    @staticmethod
    def looks(settings: SearchConfig) -> int:
        """Return how often the evidence may end the sweep; each look has its share of errors."""
        return 1

    @abstractmethod
    def propose(self, evidence: pd.DataFrame) -> list[Trial]:
        """Return the trials to run now, in order; none when the sweep is complete.

        Args:
            evidence: evidence of all complete trials, as `rankwise.select` takes it. A complete
                trial must not be proposed again.
        """

    @abstractmethod
    def expected_trials(self, evidence: pd.DataFrame) -> int:
        """Estimate the number of trials in the whole sweep, complete ones included."""

    def missing_trials(self, wanted: Iterable[TrialKey], evidence: pd.DataFrame) -> list[Trial]:
        """Return the wanted trials that are not complete."""
        return [
            Trial(
                rank=key.rank,
                seed=key.seed,
                learning_rate=key.learning_rate,
                lora_alpha=self.alpha.alpha(key.rank),
                use_rslora=self.alpha.use_rslora,
            )
            for key in missing_keys(wanted, evidence)
        ]
