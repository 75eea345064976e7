"""Settings of training that all trials of a sweep share."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from rankwise.checks import check_number
from rankwise.errors import RequestError
from rankwise.settings import Count, Flag, Option, Positive, Settings, checked

EngineName = Literal["fused", "reference"]
InitName = Literal["default", "gaussian", "orthogonal", "eva", "pissa", "olora"]
INITS: tuple[InitName, ...] = get_args(InitName)
FUSED_INITS = ("default", "gaussian", "orthogonal")  # drawn from the seed alone
BASE_CHANGING_INITS = ("pissa", "olora")  # take a part out of the base's weights


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """Settings of training that all trials of a sweep share.

    Attributes:
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

    epochs: Annotated[Count, Option("Passes over the training data.", "training")] = 1
    batch_size: Annotated[Count, Option("Examples in a training batch.", "training")] = 8
    loraplus_ratio: Annotated[
        Positive,
        Option(
            "Learning rate of B divided by the learning rate of A; LoRA+ suggests 16.",
            "training",
            "RATIO",
        ),
    ] = 1.0
    init: Annotated[
        InitName,
        Option(
            "Initial values of the adapter; eva, pissa and olora need --engine reference.",
            "adapter",
        ),
    ] = "default"
    use_dora: Annotated[
        Flag, Option("Train DoRA instead of plain LoRA; needs --engine reference.", "adapter")
    ] = False
    warmup_share: Annotated[float, checked(check_number, above=0, below=1, or_equal=True)] = 0.3
    max_grad_norm: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise RequestError(
                f"init {self.init!r} with use_dora: DoRA's magnitudes would not fit the original "
                "base; give one of the two"
            )
