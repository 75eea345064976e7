"""Settings of the decision."""

from dataclasses import dataclass
from typing import Annotated

from rankwise.settings import Option, Positive, Settings, Share


@dataclass(frozen=True, kw_only=True)
class DecisionConfig(Settings):
    """Settings of the decision: how much worse a smaller rank may be, and with what confidence."""

    margin: Annotated[
        Positive,
        Option(
            "Held-out loss that a smaller rank may cost: nats per example (sft: nats per token; "
            "regression: share of the labels' variance).",
            "decision",
            "LOSS",
        ),
    ] = 0.02
    confidence: Annotated[
        Share, Option("Confidence of the decision, between 0 and 1.", "decision", "SHARE")
    ] = 0.95
