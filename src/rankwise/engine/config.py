"""Settings of training that all trials of a sweep share."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from rankwise.checks import check_number, check_whole
from rankwise.errors import RequestError, not_allowed
from rankwise.models.config import DeviceConfig
from rankwise.settings import Count, Flag, Option, Positive, checked

EngineName = Literal["fused", "reference"]
InitName = Literal["default", "gaussian", "orthogonal", "eva", "pissa", "olora"]
INITS: tuple[InitName, ...] = get_args(InitName)
FUSED_INITS = ("default", "gaussian", "orthogonal")  # drawn from the seed alone
BASE_CHANGING_INITS = ("pissa", "olora")  # take a part out of the base's weights
CheckpointingName = Literal["auto", "on", "off"]
SchedulerName = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "adamw-8bit"]
AttentionName = Literal["auto", "varlen", "blocks"]


def _auto_is_none(value: Any) -> Any:
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    return None if is_auto else value


auto_is_none = BeforeValidator(_auto_is_none)


def _tokens(name: str, value: Any) -> int:
    try:
        return check_whole(name, value, at_least=1)
    except RequestError:
        raise not_allowed(name, value, "auto, or a whole number of tokens, at least 1") from None


MicroBatchTokens = Annotated[Annotated[int, checked(_tokens)] | None, auto_is_none]
"""Most tokens of a pass; None, written as ``auto``, leaves the number open."""
LANGUAGE_MODEL_WARMUP = 0.1
"""Default of ``warmup_ratio`` for language models; docs/gpu.md says why."""

AtLeastZero = Annotated[float, checked(check_number, above=0, or_equal=True)]
ShareOrZero = Annotated[float, checked(check_number, above=0, below=1, or_equal=True)]
WARMUP_OPTION = Option(
    "Share of the steps over which the learning rate rises from 0.", "training", "RATIO"
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DeviceConfig):
    """Settings of training that all trials of a sweep share.

    Attributes:
        use_dora: train magnitudes as well (DoRA, Liu et al. 2024, section 4).
        loraplus_ratio: learning rate of B and of vectors, divided by that of everything else
            (LoRA+, Hayou et al. 2024, section 4; vectors as in PEFT's
            ``create_loraplus_optimizer``).
        warmup_ratio: share of the steps over which the learning rate rises linearly. Long, because
            sweeps are short: Adam's step sizes need many steps to settle (Ma and Yarats 2021, "On
            the adequacy of untuned warmup for adaptive optimization").
        max_grad_norm: norm to which gradients are clipped.
        gradient_checkpointing: an engine takes ``auto`` as off; a sweep's memory plan may choose.
        micro_batch_tokens: None is whole batches, until memory runs out; a sweep's memory plan may
            choose.
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
    max_steps: Annotated[
        Count | None,
        Option(
            "Optimizer steps of a trial, in as many epochs as they take.",
            "training",
            unset="those of all epochs",
        ),
    ] = None
    lr_scheduler: Annotated[
        SchedulerName,
        Option("Course of the learning rate after the warm-up: to 0, or constant.", "training"),
    ] = "linear"
    warmup_ratio: Annotated[ShareOrZero, WARMUP_OPTION] = 0.3
    weight_decay: Annotated[AtLeastZero, Option("Weight decay of AdamW.", "training")] = 0.0
    max_grad_norm: Annotated[
        Positive, Option("Norm to which the gradients of a trial are clipped.", "training")
    ] = 1.0
    lora_dropout: Annotated[
        ShareOrZero,
        Option("Dropout of the inputs of adapters, as PEFT's lora_dropout.", "adapter", "P"),
    ] = 0.0
    optimizer: Annotated[
        OptimizerName,
        Option(
            "Optimizer; adamw-8bit keeps its states in 8 bits (needs the extra 'qlora').",
            "training",
        ),
    ] = "adamw"
    gradient_checkpointing: Annotated[
        CheckpointingName,
        Option(
            "Keep only the inputs of the blocks and recompute the rest, which saves memory and "
            "costs time; auto is off, unless the largest rank fits the fused engine only with it.",
            "machine",
        ),
    ] = "auto"
    micro_batch_tokens: Annotated[
        MicroBatchTokens,
        Option(
            "Split a batch into parts of at most this many tokens; their gradients add up to the "
            "batch's.",
            "machine",
            unset="auto: whole batches; with the fused engine, if they fit",
        ),
    ] = None
    attention: Annotated[
        AttentionName,
        Option(
            "Attention of the fused engine: one kernel for sequences of any lengths, blocks of "
            "similar lengths, or auto, the faster on the device.",
            "machine",
        ),
    ] = "auto"
    checkpoint_minutes: Annotated[
        Positive,
        Option(
            "Keep the state of trials in training every so many minutes, so that a killed sweep "
            "goes on there.",
            "machine",
            "MINUTES",
        ),
    ] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise RequestError(
                f"init {self.init!r} with use_dora: DoRA's magnitudes would not fit the original "
                "base; give one of the two"
            )
