"""Settings of the base model, of the device that holds it, and of the layers to adapt."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from rankwise.checks import check_encoding, check_text
from rankwise.errors import RequestError, not_allowed
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models.targets import REGEX_SIGNS, TargetModules, parse_targets
from rankwise.settings import Flag, Option, Settings, checked, items

Quantization = Literal["none", "int8", "nf4", "nf4-dq"]
DEVICES = ("auto", "cpu", "cuda", "mps")
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


def _model_name(name: str, value: object) -> str:
    text = str(value) if isinstance(value, Path) else value
    if isinstance(text, str) and text.strip() and "\0" not in text:
        return check_encoding(name, text)
    raise not_allowed(name, value, "a directory with config.json, a GGUF file, or a hub id")


def _device(name: str, value: Any) -> str:
    text = value.strip().lower() if isinstance(value, str) else value
    if text in DEVICES or (isinstance(text, str) and re.fullmatch(r"cuda:\d{1,3}", text)):
        return str(text)
    raise not_allowed(name, value, "auto, cpu, cuda, cuda:N for the GPU number N, or mps")


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


ModelName = Annotated[str, checked(_model_name)]
AlphaPolicyName = Annotated[str, PlainValidator(_alpha_policy)]
Targets = Annotated[TargetModules, PlainValidator(_targets)]
TARGETS_OPTION = Option(
    "Layers that get an adapter: all-linear, attention, mlp, names such as query,value or "
    "q_proj,v_proj, or a regular expression.",
    "adapter",
    "LAYERS",
)
REMOTE_CODE_OPTION = Option("Run Python code that comes with the model.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Settings of the base model and of the layers that get an adapter."""

    model: Annotated[
        ModelName | None,
        Option(
            "Base model: a directory, a GGUF file, or a hub id.",
            metavar="MODEL",
            unset="the MiniLM-L6 sample",
        ),
    ] = None
    trust_remote_code: Annotated[Flag, REMOTE_CODE_OPTION] = False
    quantization: Annotated[
        Quantization,
        Option(
            "Quantisation of the frozen linear layers; nf4-dq quantises the constants as well "
            "(all but none need the extra 'qlora')."
        ),
    ] = "none"
    target_modules: Annotated[Targets, TARGETS_OPTION] = "all-linear"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Settings):
    """Settings of the device that holds the base model, and of the precision on it."""

    device: Annotated[
        Annotated[str, checked(_device)],
        Option(
            "Device of the base model: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.",
            "machine",
            "DEVICE",
        ),
    ] = "auto"
    precision: Annotated[
        PrecisionName,
        Option(
            "Precision of the base and of its products; adapters stay in fp32. auto: bf16 on a GPU "
            "that has it, fp16 on older ones, fp32 on a CPU.",
            "machine",
        ),
    ] = "auto"
