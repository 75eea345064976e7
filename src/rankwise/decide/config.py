"""Settings of the decision."""

from dataclasses import dataclass

from rankwise.checks import check_number
from rankwise.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class DecisionConfig(Settings):
    """Settings of the decision: how much worse a smaller rank may be, and how sure that must be."""

    margin: float = option(
        0.02,
        "Held-out loss that a smaller rank may cost: nats per example, of sft nats per token, of regression a share "
        "of the labels' variance.",
        lambda value: check_number("margin", value, above=0),
    )
    confidence: float = option(
        0.95,
        "Confidence of the decision.",
        lambda value: check_number("confidence", value, above=0, below=1),
    )
