"""A model of any transformers architecture on the ``meta`` device: every shape, no weights."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError
from rankwise.models.auto import AUTO_CLASSES
from rankwise.models.compat import first_sentence, quiet_libraries
from rankwise.models.files import check_model_files, load_arguments, model_directory

if TYPE_CHECKING:
    import torch
    from torch import nn

ENDINGS = (  # of an architecture's class name
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForImageClassification", "IMAGE_CLS"),
)
HEAD_WIDTHS = (
    "head_dim",
    "kv_lora_rank",
)  # with these, heads need not divide the width (MLA: DeepSeek-V2, 2024)


@dataclass
class MetaModel:
    """A model without weights.

    Attributes:
        model: on the ``meta`` device, frozen.
        name: directory or hub id.
        task_type: a key of `AUTO_CLASSES`.
        attention: ``eager`` or ``sdpa``, what the model really has.
        notes: where the model differs from what was asked for.
    """

    model: "nn.Module"
    name: str
    task_type: str
    attention: str
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return self.model.config


def load_meta_model(
    name: str,
    dtype: "torch.dtype",
    *,
    task_type: str = "auto",
    attention: str = "sdpa",
    num_labels: int | None = None,
    trust_remote_code: bool = False,
) -> MetaModel:
    """Build a model from its config alone.

    Args:
        name: a directory with ``config.json``, or a hub id.
        dtype: of the weights.
        task_type: a key of `AUTO_CLASSES`, or ``auto``: from the config's ``architectures``.
        attention: ``eager``, or ``sdpa`` (where the model has it, else eager; a note says so).
        num_labels: classes of a classification head; None for the config's.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        RequestError: there is no such config, transformers does not know it, or it contradicts itself.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    config, untied = _read_config(name, num_labels, trust_remote_code)
    _check_heads(name, config)
    task = _task_type(config) if task_type == "auto" else task_type
    _use_no_cache(config)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0  # heads of decoders look for the last token that is not padding
    if (
        getattr(config, "is_encoder_decoder", False)
        and getattr(config, "decoder_start_token_id", None) is None
    ):
        config.decoder_start_token_id = config.pad_token_id
    auto_class: Any = getattr(transformers, AUTO_CLASSES[task])
    notes: list[str] = []

    def build(implementation: str) -> Any:
        # On meta even values that nobody sees are computed, operation by operation in Python.
        with quiet_libraries(), torch.device("meta"), no_init_weights():
            return auto_class.from_config(
                config,
                dtype=dtype,
                attn_implementation=implementation,
                trust_remote_code=trust_remote_code,
            )

    try:
        try:
            model = build(attention)
        except (ValueError, ImportError) as error:
            if attention == "eager" or "attention" not in str(error):
                raise
            notes.append(
                f"{config.model_type} has no {attention} attention in transformers; planned with eager"
            )
            attention = "eager"
            model = build(attention)
        model.tie_weights()
        if untied:
            _untie_output(model)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        ZeroDivisionError,
        AssertionError,
    ) as error:
        raise RequestError(
            f"model {name!r} cannot be built as {task}: {first_sentence(error)}"
        ) from None
    model.requires_grad_(False)
    return MetaModel(model, name, task, attention, notes)


def _use_no_cache(config: Any) -> None:
    """Let a model keep no keys and values: no training step does. A model of several parts asks each part's config."""
    from transformers import PretrainedConfig

    config.use_cache = False
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            _use_no_cache(part)


def _untie_output(model: Any) -> None:
    """Give the output layer its own matrix where the model class ties it whatever the config says (mt5).

    So does loading: a checkpoint that has both matrices is not tied.
    """
    import torch

    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is not None and outputs.weight is inputs.weight:
        outputs.weight = torch.nn.Parameter(torch.empty_like(outputs.weight))


def _read_config(name: str, num_labels: int | None, trust_remote_code: bool) -> tuple[Any, bool]:
    """Return a model's config, and whether it says that the output layer has a matrix of its own."""
    from transformers import AutoConfig, PretrainedConfig

    place, file = load_arguments(name)
    if file:
        check_model_files(name)
    elif (directory := model_directory(name)) is not None:
        _check_written_config(directory / "config.json", trust_remote_code)
    more = {} if num_labels is None else {"num_labels": num_labels}
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(
                place, trust_remote_code=trust_remote_code, **file, **more
            )
            written = config.to_dict() if file else PretrainedConfig.get_config_dict(name)[0]
    except (
        Exception
    ) as error:  # transformers and huggingface_hub raise many kinds for a config they cannot have
        raise RequestError(
            f"model {name!r}: its config cannot be read: {first_sentence(error)}"
        ) from None
    return config, written.get("tie_word_embeddings") is False


def _check_written_config(path: Path, trust_remote_code: bool) -> None:
    from transformers import CONFIG_MAPPING

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"config {str(path)!r} is not JSON: {first_sentence(error)}") from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    known = list(CONFIG_MAPPING.keys())
    if kind not in known and not (trust_remote_code and "auto_map" in content):
        close = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise RequestError(
            f"config {str(path)!r}: model_type {kind!r} is not one that transformers knows{hint}"
        )
    if kind in known:  # some write no more than what differs from their class
        content = {
            **{key: getattr(CONFIG_MAPPING[kind], key, None) for key in HEAD_WIDTHS},
            **content,
        }
    _check_heads(str(path.parent), SimpleNamespace(**content))


def _check_heads(name: str, config: Any) -> None:
    """Refuse head counts that do not divide; transformers lets some through to a wrong shape."""
    heads, width = (
        getattr(config, "num_attention_heads", None),
        getattr(config, "hidden_size", None),
    )
    groups = getattr(config, "num_key_value_heads", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    if heads < 1 or (width % heads and not any(getattr(config, key, None) for key in HEAD_WIDTHS)):
        raise RequestError(
            f"model {name!r}: hidden_size {width} cannot be divided by num_attention_heads {heads}"
            f"{_nearest_divisor(width, heads)}"
        )
    if isinstance(groups, int) and groups and heads % groups:
        raise RequestError(
            f"model {name!r}: num_attention_heads {heads} cannot be divided by num_key_value_heads {groups}"
            f"{_nearest_divisor(heads, groups)}"
        )


def _nearest_divisor(whole: int, part: int) -> str:
    divisors = [number for number in range(1, whole + 1) if whole % number == 0]
    return (
        f" (the nearest that does is {min(divisors, key=lambda number: abs(number - part))})"
        if divisors
        else ""
    )


def _task_type(config: Any) -> str:
    """Choose the head from the config's ``architectures``, or from what the model type is mostly for."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    for architecture in getattr(config, "architectures", None) or ():
        for ending, task in ENDINGS:
            if architecture.endswith(ending):
                return task
    if kind in auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return "SPEECH_SEQ2SEQ"
    if getattr(config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    encoder = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not encoder:
        return "CAUSAL_LM"
    if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "IMAGE_CLS"
    return "SEQ_CLS"
