"""Settings of training that all trials of a sweep share."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Lt

from rankwise.errors import RequestError
from rankwise.settings import (
    ADAPTER,
    TRAINING,
    Count,
    Flag,
    Option,
    Positive,
    Rule,
    Settings,
    any_case,
)

EngineName = Literal["fused", "reference"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

InitName = Literal["default", "gaussian", "orthogonal", "eva", "pissa", "olora"]
INITS: tuple[InitName, ...] = get_args(InitName)
FUSED_INITS = ("default", "gaussian", "orthogonal")  # drawn from the seed alone
BASE_CHANGING_INITS = ("pissa", "olora")  # take a part out of the base's weights


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """Settings of training that all trials of a sweep share.

    Attributes:
        init: initial values of the adapter, one of `INITS`.
        use_dora: train magnitudes as well (DoRA, Liu et al. 2024, section 4).
        loraplus_ratio: learning rate of B and of vectors, divided by that of everything else
            (LoRA+, Hayou et al. 2024, section 4; vectors as in PEFT's
            ``create_loraplus_optimizer``).
        warmup_share: share of the steps over which the learning rate rises linearly; it then falls
            linearly to 0. Long, because sweeps are short: Adam's step sizes need many steps to
            settle (Ma and Yarats 2021, "On the adequacy of untuned warmup for adaptive
            optimization"); docs/learning-rate.md has the measurement.
        max_grad_norm: norm to which gradients are clipped.
    """

    epochs: Annotated[Count, Option("Passes over the training data.", TRAINING)] = 1
    batch_size: Annotated[Count, Option("Examples in a training batch.", TRAINING)] = 8
    loraplus_ratio: Annotated[
        Positive,
        Option(
            "LoRA+: learning rate of B divided by the learning rate of A, for example 16.",
            TRAINING,
            "RATIO",
        ),
    ] = 1.0
    init: Annotated[
        InitName,
        any_case(*INITS),
        Option(
            "Initial values of the adapter; eva, pissa and olora need --engine reference.", ADAPTER
        ),
    ] = "default"
    use_dora: Annotated[
        Flag, Option("Train DoRA's magnitudes too; needs --engine reference.", ADAPTER)
    ] = False
    warmup_share: Annotated[float, Rule("a share from 0 up to below 1", (Ge(0), Lt(1)))] = 0.3
    max_grad_norm: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise RequestError(
                f"init {self.init!r} with use_dora: DoRA's magnitudes would not fit the original "
                "base; give one of the two"
            )
