"""What a plan is asked for: the one source for command-line options and Python arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rankwise.checks import check_flag, check_text, check_whole, parse_bytes
from rankwise.errors import RequestError, nearest, shown
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models.config import QUANTIZATIONS, model_name, targets
from rankwise.models.targets import TargetModules
from rankwise.planning.memory.devices import DEVICES, find_device
from rankwise.settings import Settings, choice, items, option, optional, whole_items

PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = (
    "adamw",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "sgd",
    "adafactor",
    "lion",
)
ATTENTIONS = ("eager", "sdpa", "flash")
TASK_TYPES = (
    "auto",
    "CAUSAL_LM",
    "SEQ_CLS",
    "SEQ_2_SEQ_LM",
    "TOKEN_CLS",
    "IMAGE_CLS",
    "SPEECH_SEQ2SEQ",
)
BIASES = ("none", "all", "lora_only")


def _switch(name: str) -> Callable[[Any], bool]:
    return lambda value: check_flag(name, value)


def _rank_pattern(value: object) -> tuple[tuple[str, int], ...]:
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


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """A plan's request. Every field is a command-line option and a Python argument of that name.

    Raises:
        RequestError: a value is not allowed; the message names it and what is.
    """

    model: str = option(
        "",
        "Base model: a directory with config.json (weights are not needed), or a hub id.",
        model_name,
    )
    ranks: tuple[int, ...] = option(
        (4, 8, 16, 32, 64),
        "Ranks, as in 4,8,16.",
        lambda value: whole_items("rank", value, at_least=1),
    )
    batch_size: int = option(
        1,
        "Sequences in a training batch.",
        lambda value: check_whole("batch_size", value, at_least=1),
    )
    seq_len: int = option(
        512,
        "Tokens of a sequence; the batch has no padding.",
        lambda value: check_whole("seq_len", value, at_least=1),
    )
    precision: str = option(
        "bf16",
        "Of the base weights and the computation: fp32, bf16 or fp16.",
        choice("precision", PRECISIONS),
    )
    quantization: str = option(
        "none",
        "Of the frozen linear layers: none (as on disk), int8, nf4 or nf4-dq.",
        choice("quantization", QUANTIZATIONS),
    )
    optimizer: str = option(
        "adamw", f"One of {', '.join(OPTIMIZERS)}.", choice("optimizer", OPTIMIZERS)
    )
    gradient_checkpointing: bool = option(
        False,
        "Keep only the blocks' inputs and compute the rest again.",
        _switch("gradient_checkpointing"),
    )
    attention: str = option(
        "sdpa",
        "eager keeps the scores; sdpa is what PyTorch chooses on the device; flash never keeps them.",
        choice("attention", ATTENTIONS),
    )
    target_modules: TargetModules = option(
        "all-linear",
        "Layers that get an adapter: all-linear, attention, mlp, names as in q_proj,v_proj, or a regex.",
        targets,
    )
    modules_to_save: tuple[str, ...] = option(
        (),
        "Layers trained in full beside the adapter, as in embed_tokens,lm_head.",
        lambda value: tuple(check_text("modules_to_save", item) for item in items(value)),
    )
    lora_alpha: str = option(
        "r",
        "r, 2r, fixed:32 or rslora; changes no figure.",
        lambda value: parse_alpha_policy(value).name,
    )
    rank_pattern: tuple[tuple[str, int], ...] = option(
        (), "Ranks of single layers, as in q_proj=4 (name or regex).", _rank_pattern
    )
    bias: str = option(
        "none", "Biases trained too: none, all or lora_only.", choice("bias", BIASES)
    )
    use_dora: bool = option(False, "Train DoRA's magnitudes as well.", _switch("use_dora"))
    task_type: str = option(
        "auto", f"One of {', '.join(TASK_TYPES)}.", choice("task_type", TASK_TYPES)
    )
    num_labels: int | None = option(
        None,
        "Classes of a classification head. Default: the config's.",
        optional(lambda value: check_whole("num_labels", value, at_least=1)),
    )
    device: str | None = option(
        None,
        f"Which ranks fit: {', '.join(DEVICES)}, or cpu.",
        optional(lambda value: find_device(check_text("device", value)).name),
    )
    memory: int | None = option(
        None,
        "Which ranks fit a memory of this size, as in 24GB or 16GiB.",
        optional(lambda value: parse_bytes("memory", value)),
    )
    trust_remote_code: bool = option(
        False, "Run Python code that comes with the model.", _switch("trust_remote_code")
    )

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["rank_pattern"] = dict(self.rank_pattern)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def make_plan_config(values: Mapping[str, object]) -> PlanConfig:
    """Build a request from named values.

    Raises:
        RequestError: a name is not a setting (the nearest is named), or a value is not allowed.
    """
    known = [item.name for item in fields(PlanConfig)]
    for name in values:
        if name not in known:
            raise RequestError(
                f"{name!r} is not a setting of a plan{nearest(name, known)}; known: {', '.join(known)}"
            )
    return PlanConfig(**values)  # type: ignore[arg-type]
