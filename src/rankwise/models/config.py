"""Settings of the base model and of the layers that get an adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainValidator

from rankwise.checks import check_text
from rankwise.errors import RequestError
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models.targets import REGEX_SIGNS, TargetModules, parse_targets
from rankwise.settings import (
    ADAPTER,
    MODEL,
    Flag,
    Option,
    Rule,
    Settings,
    any_case,
    items,
)

Quantization = Literal["none", "int8", "nf4", "nf4-dq"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)


def _model_name(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("not a model")
    return value


def _targets(value: object) -> TargetModules:
    # A regular expression may contain commas.
    is_regex = isinstance(value, str) and bool(REGEX_SIGNS & set(value))
    names = [check_text("target_modules", item) for item in ([value] if is_regex else items(value))]
    if not names:
        raise RequestError(
            "target_modules: none given; allowed is 'all-linear' or layer names such as query,value"
        )
    return parse_targets(names)


def _alpha_policy(value: Any) -> str:
    return parse_alpha_policy(value).name


ModelName = Annotated[
    str,
    Rule(
        "a directory with config.json, a GGUF file, or a hub id",
        (BeforeValidator(_model_name),),
    ),
]
AlphaPolicyName = Annotated[str, PlainValidator(_alpha_policy)]
Targets = Annotated[TargetModules, PlainValidator(_targets)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Settings of the base model and of the layers that get an adapter."""

    model: Annotated[
        ModelName | None,
        Option(
            "Base model: a directory, a GGUF file, or a hub id.",
            MODEL,
            "MODEL",
            "the MiniLM-L6 sample",
        ),
    ] = None
    trust_remote_code: Annotated[Flag, Option("Run Python code that comes with the model.")] = False
    quantization: Annotated[
        Quantization,
        any_case(*QUANTIZATIONS),
        Option(
            "Load the linear layers of the frozen base quantised; nf4-dq quantises the constants "
            "as well (needs the extra 'qlora')."
        ),
    ] = "none"
    target_modules: Annotated[
        Targets,
        Option(
            "Layers that get an adapter: all-linear, attention, mlp, names as in query,value, or "
            "a regular expression.",
            ADAPTER,
            "LAYERS",
        ),
    ] = "all-linear"
