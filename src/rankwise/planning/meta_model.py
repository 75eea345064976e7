"""A model of any transformers architecture on the ``meta`` device: every shape, no weights."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto as auto

from rankwise.errors import RequestError, not_allowed, reading
from rankwise.models.auto import AUTO_CLASSES
from rankwise.models.compat import quiet_libraries
from rankwise.models.files import (
    check_model_files,
    load_arguments,
    model_directory,
    similar_directory,
)
from rankwise.planning.config import MOST_LABELS

TASK_OF_ENDING = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForImageClassification": "IMAGE_CLS",
}
"""The task of an architecture, by how its class name ends."""
NAMELESS = {
    "IMAGE_TEXT_TO_TEXT": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "SPEECH_SEQ2SEQ": auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
"""Model types of the tasks that PEFT has no name for; its users write CAUSAL_LM or SEQ_2_SEQ_LM."""
HAVE_TASK = {
    "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
"""Model types with a class of their own for these tasks."""
MOST_BLOCKS = 1000
MANY = re.compile(r"(layers?|depth|experts)$")
"""Keys of a config that count parts which are built one by one."""
LARGEST_TRIED = 100_000
HEAD_WIDTHS = ("head_dim", "kv_lora_rank")
"""Config keys with which heads need not divide the width (MLA: DeepSeek-V2, 2024)."""


@dataclass
class MetaModel:
    """A model without weights.

    Attributes:
        model: the model on the ``meta`` device, frozen.
        name: directory or hub id.
        task_type: a key of `AUTO_CLASSES`.
        attention: ``eager`` or ``sdpa``.
        notes: differences between model and request.
    """

    model: nn.Module
    name: str
    task_type: str
    attention: str
    notes: list[str]

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return self.model.config

    @property
    def language_model(self) -> str | None:
        """Name of the language model inside a model for images and text; None in others."""
        if self.task_type != "IMAGE_TEXT_TO_TEXT":
            return None
        part = self.model.get_decoder()  # type: ignore[operator]
        names = [name for name, module in self.model.named_modules() if module is part]
        return names[0] if names and names[0] else None


def load_meta_model(
    name: str,
    dtype: torch.dtype,
    *,
    task_type: str = "auto",
    attention: str = "sdpa",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
) -> MetaModel:
    """Build a model from its config alone.

    Args:
        name: a directory with ``config.json``, or a hub id.
        dtype: precision of the weights.
        task_type: a key of `AUTO_CLASSES`, or ``auto``: from ``architectures`` in the config.
        attention: ``eager`` or ``sdpa``; a model without sdpa gets eager, and a note.
        num_labels: classes of a classification head; default: the number in the config.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        RequestError: there is no such config, or transformers cannot build it.
    """
    config, has_untied_output = _read_config(name, num_labels, trust_remote_code)
    with reading(f"model {name!r} has a config that contradicts itself"):
        _check_heads(name, config)
        _disable_cache(config)
        _fill_in_token_ids(config)
        task = _task_type(config) if task_type == "auto" else _own_task(config, task_type)
    notes = [] if task_type in ("auto", task) else [f"{config.model_type} is planned as {task}"]
    with reading(f"model {name!r} cannot be built as {task}"):
        try:
            model = _build(config, task, dtype, attention, trust_remote_code)
        except (ValueError, ImportError) as error:
            if attention == "eager" or "attention" not in str(error):
                raise
            missing = f"{config.model_type} has no {attention} attention in transformers"
            notes.append(f"{missing}; planned with eager")
            attention = "eager"
            model = _build(config, task, dtype, attention, trust_remote_code)
        model.tie_weights()
        if has_untied_output:
            _untie_output(model)
    model.requires_grad_(False)
    return MetaModel(model, name, task, attention, notes)


def _read_config(name: str, num_labels: int | None, trust_remote_code: bool) -> tuple[Any, bool]:
    """Return a model's config, and whether it gives the output layer a matrix of its own."""
    place, gguf_file = load_arguments(name)
    if gguf_file:
        check_model_files(name)
    elif directory := model_directory(name):
        with reading(f"model {name!r} has a config that contradicts itself"):
            _check_config_file(directory / "config.json", trust_remote_code)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **gguf_file}
    if num_labels is not None:
        options["num_labels"] = num_labels
    where = ""
    if not Path(name).exists():
        where = f"no such directory{similar_directory(name)}; on the hub "
    with reading(f"model {name!r}: {where}its config cannot be read"), quiet_libraries():
        config = AutoConfig.from_pretrained(place, **options)
        content = config.to_dict()
        if not gguf_file:  # the file itself, without the defaults of the config's class
            content, _ = PretrainedConfig.get_config_dict(name)
    return config, content.get("tie_word_embeddings") is False


def _check_config_file(path: Path, trust_remote_code: bool) -> None:
    """Refuse a ``config.json`` that transformers does not know or that contradicts itself."""
    with reading(f"config {str(path)!r} is not JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
    _check_counts(str(path), content)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    model_types = list(CONFIG_MAPPING.keys())
    if model_type in model_types:
        # A config may hold only what differs from its class.
        config_class = CONFIG_MAPPING[model_type]
        defaults = {key: getattr(config_class, key, None) for key in HEAD_WIDTHS}
        content = {**defaults, **content}
    elif not (trust_remote_code and "auto_map" in content):
        close = difflib.get_close_matches(str(model_type), model_types, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        problem = f"transformers does not know the model_type {model_type!r}{hint}"
        raise RequestError(f"config {str(path)!r}: {problem}")
    _check_heads(str(path.parent), SimpleNamespace(**content))


def _check_counts(path: str, content: Any) -> None:
    """Refuse so many blocks or labels, in any part of a config, that building would not end."""
    for key, value in content.items() if isinstance(content, dict) else ():
        _check_counts(path, value)
        most = MOST_LABELS if key == "num_labels" else MOST_BLOCKS
        counts = key == "num_labels" or MANY.search(key)
        if counts and isinstance(value, int | float) and not value <= most:
            raise not_allowed(f"config {path!r}: {key}", value, f"a number of at most {most}")


def _check_heads(name: str, config: Any) -> None:
    """Refuse head counts that do not divide; transformers builds wrong shapes from some of them."""
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    need_not_divide = any(getattr(config, key, None) for key in HEAD_WIDTHS)
    if heads < 1 or (width % heads and not need_not_divide):
        raise _indivisible(name, "hidden_size", width, "num_attention_heads", heads)
    if isinstance(groups, int) and groups and heads % groups:
        raise _indivisible(name, "num_attention_heads", heads, "num_key_value_heads", groups)


def _indivisible(name: str, key: str, whole: int, divisor: str, part: int) -> RequestError:
    tried = range(1, min(whole, LARGEST_TRIED) + 1)
    divisors = [number for number in tried if whole % number == 0]
    nearest = min(divisors, key=lambda number: abs(number - part), default=None)
    hint = "" if nearest is None else f" (the nearest that does is {nearest})"
    return RequestError(
        f"model {name!r}: {key} {whole} cannot be divided by {divisor} {part}{hint}"
    )


def _disable_cache(config: Any) -> None:
    """Switch off the cache of keys and values, as in training; each part has a config."""
    config.use_cache = False
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            _disable_cache(part)


def _fill_in_token_ids(config: Any) -> None:
    """Give a config the token ids that a forward pass needs; their values do not matter."""
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
    start = getattr(config, "decoder_start_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and start is None:
        config.decoder_start_token_id = config.pad_token_id


def _own_task(config: Any, requested: str) -> str:
    """Return the requested task, or the one that it is written for with this model type."""
    if config.model_type not in HAVE_TASK.get(requested, (config.model_type,)):
        for task, model_types in NAMELESS.items():
            if config.model_type in model_types:
                return task
    return requested


def _task_type(config: Any) -> str:
    """Choose the task from ``architectures``, or else the usual task of the model type."""
    for architecture in getattr(config, "architectures", None) or ():
        for ending, task in TASK_OF_ENDING.items():
            if architecture.endswith(ending):
                return _own_task(config, task)
    model_type = config.model_type
    if (task := _own_task(config, "SEQ_2_SEQ_LM")) != "SEQ_2_SEQ_LM":
        return task
    if getattr(config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    is_encoder = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder:
        return "CAUSAL_LM"
    if model_type in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "IMAGE_CLS"
    return "SEQ_CLS"


def _build(
    config: Any, task: str, dtype: torch.dtype, attention: str, trust_remote_code: bool
) -> Any:
    auto_class: Any = getattr(transformers, AUTO_CLASSES[task])
    # Without no_init_weights the initial values, which meta drops, are computed in Python.
    with quiet_libraries(), torch.device("meta"), no_init_weights():
        options = {"dtype": dtype, "attn_implementation": attention}
        return auto_class.from_config(config, trust_remote_code=trust_remote_code, **options)


def _untie_output(model: Any) -> None:
    """Give the output layer its own matrix, as loading does if a checkpoint has both (mt5)."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is not None and outputs.weight is inputs.weight:
        outputs.weight = torch.nn.Parameter(torch.empty_like(outputs.weight))
