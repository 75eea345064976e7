"""Settings of the base model and of the layers that get an adapter."""

from dataclasses import dataclass
from pathlib import Path

from rankwise.checks import check_flag, check_text
from rankwise.errors import RequestError, shown
from rankwise.models.targets import REGEX_SIGNS, TargetModules, parse_targets
from rankwise.settings import Settings, choice, items, option, optional

QUANTIZATIONS = ("none", "int8", "nf4", "nf4-dq")


def model_name(value: object) -> str:
    """Return the name of a model as text."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise RequestError(
            f"model {shown(value)}: allowed is a directory with config.json, a GGUF file, or a hub id"
        )
    return value


def targets(value: object) -> TargetModules:
    """Return the layers that get an adapter."""
    # A regular expression may have commas of its own.
    given = [value] if isinstance(value, str) and REGEX_SIGNS & set(value) else items(value)
    names = [check_text("target_modules", item) for item in given]
    if not names:
        raise RequestError(
            "target_modules: none given; allowed is 'all-linear' or layer names such as query,value"
        )
    return parse_targets(names)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Settings of the base model and of the layers that get an adapter."""

    model: str | None = option(
        None,
        "Base model: a directory, a GGUF file, or a hub id. Default: the MiniLM-L6 sample.",
        optional(model_name),
    )
    target_modules: TargetModules = option(
        "all-linear",
        "Layers that get an adapter: all-linear, attention, mlp, names as in query,value, or a regex.",
        targets,
    )
    quantization: str = option(
        "none",
        "Of the frozen base's linear layers: none, int8, nf4, or nf4-dq (double quantisation); extra 'qlora'.",
        choice("quantization", QUANTIZATIONS),
    )
    trust_remote_code: bool = option(
        False,
        "Run Python code that comes with the model.",
        lambda value: check_flag("trust_remote_code", value),
    )
