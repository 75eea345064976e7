"""The request of a plan: one declaration for command-line options and Python arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import PlainValidator

from rankwise.checks import check_text, check_whole, parse_bytes
from rankwise.errors import RequestError, shown
from rankwise.models.config import QUANTIZATIONS, AlphaPolicyName, ModelName, Quantization, Targets
from rankwise.planning.memory.devices import DEVICES, find_device
from rankwise.settings import (
    ADAPTER,
    MACHINE,
    MODEL,
    TRAINING,
    Count,
    Flag,
    Option,
    Ranks,
    Settings,
    Several,
    Text,
    any_case,
    items,
    named,
)

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal[
    "adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "sgd", "adafactor", "lion"
]
AttentionName = Literal["eager", "sdpa", "flash"]
TaskType = Literal[
    "auto", "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "IMAGE_CLS", "SPEECH_SEQ2SEQ"
]
Bias = Literal["none", "all", "lora_only"]
RankPattern = tuple[tuple[str, int], ...]


def _rank_pattern(value: object) -> RankPattern:
    pairs = list(value.items()) if isinstance(value, Mapping) else items(value)
    parsed = []
    for pair in pairs:
        name, _, rank = pair.rpartition("=") if isinstance(pair, str) else ("", "", None)
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            name, rank = pair
        if not isinstance(name, str) or not name.strip():
            raise RequestError(
                f"rank_pattern {shown(pair)}: allowed is LAYER=RANK, as in q_proj=4,v_proj=8"
            )
        parsed.append((name, check_whole("rank_pattern", rank, at_least=1)))
    return tuple(parsed)


def _device(value: Any) -> str:
    return find_device(check_text("device", value)).name


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """The request of a plan.

    Raises:
        RequestError: a value is not allowed; the message names it and what is allowed.
    """

    model: Annotated[
        ModelName,
        Option(
            "Base model: a directory with config.json (weights are not needed), or a hub id.",
            MODEL,
            "MODEL",
            positional=True,
        ),
    ] = ""
    ranks: Annotated[Ranks, Option("Ranks to plan for, as in 4,8,16.", ADAPTER, "R,R,...")] = (
        4,
        8,
        16,
        32,
        64,
    )
    batch_size: Annotated[Count, Option("Sequences in a training batch.", TRAINING)] = 1
    seq_len: Annotated[
        Count, Option("Tokens of a sequence; the batch has no padding.", TRAINING, "TOKENS")
    ] = 512
    precision: Annotated[
        Precision,
        any_case("fp32", "bf16", "fp16"),
        Option("Precision of the base weights and of the computation."),
    ] = "bf16"
    quantization: Annotated[
        Quantization,
        any_case(*QUANTIZATIONS),
        Option("Quantisation of the frozen linear layers; none leaves them as on disk."),
    ] = "none"
    optimizer: Annotated[
        Optimizer,
        any_case(*get_args(Optimizer)),
        Option("Optimizer of the training step.", TRAINING),
    ] = "adamw"
    gradient_checkpointing: Annotated[
        Flag,
        Option("Keep only the inputs of the blocks, and compute the rest again.", TRAINING),
    ] = False
    attention: Annotated[
        AttentionName,
        any_case("eager", "sdpa", "flash"),
        Option(
            "Attention: eager keeps the scores; sdpa is what PyTorch chooses on the device; flash "
            "never keeps them.",
            TRAINING,
        ),
    ] = "sdpa"
    target_modules: Annotated[
        Targets,
        Option(
            "Layers that get an adapter: all-linear, attention, mlp, names as in q_proj,v_proj, or "
            "a regular expression.",
            ADAPTER,
            "LAYERS",
        ),
    ] = "all-linear"
    modules_to_save: Annotated[
        tuple[Text, ...],
        Several,
        Option(
            "Layers trained in full next to the adapter, as in embed_tokens,lm_head.",
            ADAPTER,
            "LAYERS",
            "none",
        ),
    ] = ()
    lora_alpha: Annotated[
        AlphaPolicyName,
        Option("lora_alpha: r, 2r, fixed:32 or rslora; it changes no figure.", ADAPTER, "POLICY"),
    ] = "r"
    rank_pattern: Annotated[
        RankPattern,
        PlainValidator(_rank_pattern),
        Option(
            "Ranks of single layers, as in q_proj=4 (name or regular expression).",
            ADAPTER,
            "LAYER=R,...",
            "none",
        ),
    ] = ()
    bias: Annotated[
        Bias, any_case("none", "all", "lora_only"), Option("Biases that are trained too.", ADAPTER)
    ] = "none"
    use_dora: Annotated[Flag, Option("Train DoRA's magnitudes too.", ADAPTER)] = False
    task_type: Annotated[
        TaskType,
        any_case(*get_args(TaskType)),
        Option("PEFT's task type; auto reads the architecture in config.json."),
    ] = "auto"
    num_labels: Annotated[
        Count | None,
        Option("Classes of a classification head.", MODEL, "N", "the number in config.json"),
    ] = None
    device: Annotated[
        Annotated[str, PlainValidator(_device)] | None,
        Option(
            f"Show which ranks fit this device: {', '.join(DEVICES)}, or cpu.",
            MACHINE,
            "DEVICE",
            "none; kernels of a card of capability 8.0",
        ),
    ] = None
    memory: Annotated[
        Annotated[int, PlainValidator(partial(parse_bytes, "memory"))] | None,
        Option(
            "Show which ranks fit this much memory, as in 24GB or 16GiB.",
            MACHINE,
            "SIZE",
            "all of the device",
        ),
    ] = None
    trust_remote_code: Annotated[Flag, Option("Run Python code that comes with the model.")] = False

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        return {**super().as_dict(), "rank_pattern": dict(self.rank_pattern)}


class PlanSettings(TypedDict, total=False):
    """Keyword arguments of `rankwise.plan`, for editors and type checkers.

    A test holds them to the fields of `PlanConfig`.
    """

    ranks: Sequence[int] | str
    batch_size: int
    seq_len: int
    precision: Precision
    quantization: Quantization
    optimizer: Optimizer
    gradient_checkpointing: bool
    attention: AttentionName
    target_modules: str | Sequence[str]
    modules_to_save: str | Sequence[str]
    lora_alpha: str
    rank_pattern: str | Mapping[str, int]
    bias: Bias
    use_dora: bool
    task_type: TaskType
    num_labels: int | None
    device: str | None
    memory: int | str | None
    trust_remote_code: bool


def make_plan_config(values: Mapping[str, object]) -> PlanConfig:
    """Build a request from named values.

    Raises:
        RequestError: a name is not a setting (the nearest is named), or a value is not allowed.
    """
    return PlanConfig(**named(PlanConfig, values, "a plan"))  # type: ignore[arg-type]
