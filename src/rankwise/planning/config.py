"""The request of a plan: one declaration for command-line options and Python arguments."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import PlainValidator

from rankwise.checks import check_text, check_whole
from rankwise.engine.config import EngineName, MicroBatchTokens, OptimizerName, ShareOrZero
from rankwise.errors import RequestError, not_allowed, reading, shown
from rankwise.models import config as models
from rankwise.models.config import Quantization
from rankwise.planning.memory.devices import DEVICES, find_device
from rankwise.settings import (
    Bytes,
    Count,
    Flag,
    Option,
    Positive,
    Ranks,
    Seeds,
    Settings,
    Several,
    Text,
    checked,
    items,
)

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal[
    "adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "sgd", "adafactor", "lion"
]
AttentionName = Literal["eager", "sdpa", "flash", "varlen", "blocks"]
TaskType = Literal[
    "auto",
    "CAUSAL_LM",
    "SEQ_CLS",
    "SEQ_2_SEQ_LM",
    "TOKEN_CLS",
    "IMAGE_CLS",
    "SPEECH_SEQ2SEQ",
    "IMAGE_TEXT_TO_TEXT",
]
Bias = Literal["none", "all", "lora_only"]
MOST_LABELS = 1_000_000  # transformers gives a name to each
Labels = Annotated[int, checked(check_whole, at_least=1, at_most=MOST_LABELS)]
RankPattern = tuple[tuple[str, int], ...]
DEFAULT_RANKS = (4, 8, 16, 32, 64)
FUSED_ONLY = ("micro_batch_tokens", "seeds", "train_examples", "epochs", "tflops")
REFERENCE_ONLY = ("autocast", "modules_to_save", "rank_pattern", "bias", "use_dora")
ATTENTIONS: dict[EngineName, tuple[AttentionName, ...]] = {
    "reference": ("eager", "sdpa", "flash"),
    "fused": ("sdpa", "varlen", "blocks"),
}


def _rank_pattern(value: object) -> RankPattern:
    pairs = list(value.items()) if isinstance(value, Mapping) else items(value)
    parsed = []
    for pair in pairs:
        name, _, rank = pair.rpartition("=") if isinstance(pair, str) else ("", "", None)
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            name, rank = pair
        if not isinstance(name, str) or not name.strip():
            raise not_allowed("rank_pattern", pair, "LAYER=RANK, as in q_proj=4,v_proj=8")
        with reading(f"rank_pattern {shown(name)} is not a regular expression"):
            re.compile(name)
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
        models.ModelName,
        Option(
            "Base model: a directory with config.json (weights are not needed), or a hub id.",
            metavar="MODEL",
            positional=True,
        ),
    ] = ""
    ranks: Annotated[Ranks, Option("Ranks to plan for.", "adapter", "R,R,...")] = DEFAULT_RANKS
    batch_size: Annotated[
        Count, Option("Sequences in a training batch (a sweep's default is 8).", "training")
    ] = 1
    seq_len: Annotated[
        Count, Option("Length of every sequence (no padding).", "training", "TOKENS")
    ] = 512
    precision: Annotated[
        Precision, Option("Precision of the base weights and of the computation.")
    ] = "bf16"
    quantization: Annotated[
        Quantization,
        Option("Quantisation of the frozen linear layers; none leaves them as on disk."),
    ] = "none"
    optimizer: Annotated[Optimizer, Option("Optimizer.", "training")] = "adamw"
    gradient_checkpointing: Annotated[
        Flag,
        Option("Keep only the inputs of the blocks; recompute the rest when needed.", "training"),
    ] = False
    autocast: Annotated[
        Flag,
        Option("Plan a loop under torch.autocast, as Trainer's bf16 and fp16 do.", "training"),
    ] = False
    attention: Annotated[
        AttentionName,
        Option(
            "Attention kernel: eager keeps the scores in memory, flash does not, sdpa is PyTorch's "
            "choice on the device; with --engine fused varlen, blocks, or sdpa for its own choice.",
            "training",
        ),
    ] = "sdpa"
    target_modules: Annotated[
        models.Targets | None,
        replace(models.TARGETS_OPTION, unset="all-linear; with images, the language model's"),
    ] = None
    modules_to_save: Annotated[
        tuple[Text, ...],
        Several,
        Option(
            "Layers trained in full next to the adapter, as in embed_tokens,lm_head.",
            "adapter",
            "LAYERS",
            "none",
        ),
    ] = ()
    lora_alpha: Annotated[
        models.AlphaPolicyName,
        Option("lora_alpha: r, 2r, fixed:32 or rslora; it changes no figure.", "adapter", "POLICY"),
    ] = "r"
    rank_pattern: Annotated[
        RankPattern,
        PlainValidator(_rank_pattern),
        Option(
            "Ranks of single layers (name or regular expression), as in q_proj=4,v_proj=8.",
            "adapter",
            "LAYER=R,...",
            "none",
        ),
    ] = ()
    bias: Annotated[Bias, Option("Biases to train too.", "adapter")] = "none"
    use_dora: Annotated[Flag, Option("Train DoRA instead of plain LoRA.", "adapter")] = False
    lora_dropout: Annotated[
        ShareOrZero, Option("Dropout of the inputs of adapters.", "adapter", "P")
    ] = 0.0
    task_type: Annotated[
        TaskType, Option("PEFT's task type; auto reads the architecture in config.json.")
    ] = "auto"
    num_labels: Annotated[
        Labels | None,
        Option("Classes of a classification head.", unset="the number in config.json"),
    ] = None
    engine: Annotated[
        EngineName,
        Option(
            "Engine whose training step is planned: reference (PEFT and a plain loop) or fused "
            "(that of rankwise sweep, many trials at once).",
            "training",
        ),
    ] = "reference"
    micro_batch_tokens: Annotated[
        MicroBatchTokens,
        Option(
            "With --engine fused: split a batch into parts of at most this many tokens.",
            "training",
            "N",
            "auto: whole batches if they fit",
        ),
    ] = None
    seeds: Annotated[
        Seeds, Option("With --engine fused: trials per rank of the sweep.", "search")
    ] = 2
    train_examples: Annotated[
        Count | None,
        Option(
            "With --engine fused: training examples of the sweep.",
            "search",
            unset="none; the sweep's work is not counted",
        ),
    ] = None
    epochs: Annotated[
        Count, Option("With --engine fused: passes over the training examples.", "search")
    ] = 1
    tflops: Annotated[
        Positive | None,
        Option(
            "With --engine fused: useful TFLOP/s of the device, as rankwise sweep --dry-run "
            "measures them, for the hours of the sweep.",
            "search",
            unset="none; no time is estimated",
        ),
    ] = None
    device: Annotated[
        Annotated[str, PlainValidator(_device)] | None,
        Option(
            f"Show which ranks fit this device: {', '.join(DEVICES)}, or cpu.",
            "machine",
            "DEVICE",
            "none; attention kernels as on an A100",
        ),
    ] = None
    memory: Annotated[
        Bytes | None,
        Option(
            "Show which ranks fit this much memory, as in 24GB or 16GiB.",
            "machine",
            "SIZE",
            "all of the device",
        ),
    ] = None
    trust_remote_code: Annotated[Flag, models.REMOTE_CODE_OPTION] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {item.name: item.default for item in fields(self)}
        names = FUSED_ONLY if self.engine == "reference" else REFERENCE_ONLY
        for name in names:
            value = getattr(self, name)
            if value != defaults[name]:
                raise _of_other_engine(self.engine, name, value)
        choices = {"attention": ATTENTIONS[self.engine]}
        if self.engine == "fused":
            choices["optimizer"] = get_args(OptimizerName)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                words = f"{', '.join(allowed)} with engine {self.engine}"
                raise not_allowed(name, getattr(self, name), words)

    @property
    def targets(self) -> models.TargetModules:
        """The layers that get an adapter."""
        return self.target_modules or "all-linear"

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = {**super().as_dict(), "rank_pattern": dict(self.rank_pattern)}
        if self.engine == "reference":
            for name in ("engine", *FUSED_ONLY):
                del values[name]
        return values


def _of_other_engine(engine: EngineName, name: str, value: object) -> RequestError:
    """Return the refusal of a setting that the planned engine does not have."""
    if engine == "reference":
        problem = "a setting of the fused engine; add --engine fused"
    else:
        problem = "not for engine fused, which trains plain LoRA; leave it out"
    return RequestError(f"{name} {shown(value)} is {problem}", setting=name)


class PlanSettings(TypedDict, total=False):
    """Keyword arguments of `rankwise.plan`; a test holds them to the fields of `PlanConfig`."""

    ranks: Sequence[int] | str
    batch_size: int
    seq_len: int
    precision: Precision
    quantization: Quantization
    optimizer: Optimizer
    gradient_checkpointing: bool
    autocast: bool
    attention: AttentionName
    target_modules: str | Sequence[str]
    modules_to_save: str | Sequence[str]
    lora_alpha: str
    rank_pattern: str | Mapping[str, int]
    bias: Bias
    use_dora: bool
    lora_dropout: float
    task_type: TaskType
    num_labels: int | None
    engine: EngineName
    micro_batch_tokens: int | str | None
    seeds: int
    train_examples: int | None
    epochs: int
    tflops: float | None
    device: str | None
    memory: int | str | None
    trust_remote_code: bool
