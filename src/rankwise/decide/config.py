"""Settings of the decision."""

from dataclasses import dataclass
from typing import Annotated

from rankwise.settings import Flag, Option, Positive, Settings, Share


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
    no_prior: Annotated[
        Flag,
        Option(
            "Judge the noise of seeds by this sweep alone, without what other tasks show.",
            "decision",
        ),
    ] = False
    require_confidence: Annotated[
        Flag,
        Option("Write best/ and export/ only if a rank reaches the confidence.", "decision"),
    ] = False
