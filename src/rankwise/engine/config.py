"""Settings that all trials of a sweep share in training."""

from dataclasses import dataclass

from rankwise.checks import check_flag, check_number, check_whole
from rankwise.errors import RequestError
from rankwise.settings import Settings, choice, option

ENGINES = ("fused", "reference")
FUSED_INITS = ("default", "gaussian", "orthogonal")  # drawn from the seed alone
BASE_CHANGING_INITS = ("pissa", "olora")  # take a part out of the base's weights
INITS = (*FUSED_INITS, "eva", *BASE_CHANGING_INITS)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """Settings that all trials of a sweep share in training.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples in a batch.
        loraplus_ratio: learning rate of B, and of vectors, divided by that of everything else (LoRA+, Hayou et al.
            2024, section 4; the vectors as PEFT's ``create_loraplus_optimizer`` has it).
        use_dora: train magnitudes as well (DoRA, Liu et al. 2024, section 4).
        init: initial values of the adapter, one of `INITS`.
        warmup_share: share of the steps over which the learning rate rises linearly; it then falls linearly to 0.
            Long, because sweeps are short: Adam's step sizes need many steps to settle (Ma and Yarats 2021, "On the
            adequacy of untuned warmup for adaptive optimization"); docs/learning-rate.md has the measurement.
        max_grad_norm: gradients are clipped to this norm.
    """

    epochs: int = option(
        1, "Passes over the training data.", lambda value: check_whole("epochs", value, at_least=1)
    )
    batch_size: int = option(
        8,
        "Examples in a training batch.",
        lambda value: check_whole("batch_size", value, at_least=1),
    )
    init: str = option(
        "default",
        f"Initial values of the adapter: {', '.join(INITS)}; eva, pissa and olora with --engine reference.",
        choice("init", INITS),
    )
    use_dora: bool = option(
        False,
        "Train DoRA's magnitudes as well, with --engine reference.",
        lambda value: check_flag("use_dora", value),
    )
    loraplus_ratio: float = option(
        1.0,
        "LoRA+: learning rate of B divided by that of A, for example 16.",
        lambda value: check_number("loraplus_ratio", value, above=0),
    )
    warmup_share: float = 0.3
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise RequestError(
                f"init {self.init!r} with use_dora cannot be saved for the base as it is: DoRA's magnitudes are those "
                "of the base without the part that was taken out; give one of the two"
            )
