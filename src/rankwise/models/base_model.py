"""The frozen base: found, checked, loaded once."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch import nn

from rankwise.errors import RequestError
from rankwise.models.auto import (
    AUTO_CLASSES,
    first_position,
    position_tables,
    trained_heads,
)
from rankwise.models.compat import first_sentence, quiet_libraries
from rankwise.models.files import check_model_files, load_arguments
from rankwise.models.quantization import (
    check_quantization,
    is_quantized,
    keep_as_loaded,
    loading_arguments,
)
from rankwise.models.targets import check_ranks, find_targets
from rankwise.tasks.base import Objective


@dataclass
class BaseModel:
    """A frozen base model, shared by all trials.

    Attributes:
        model: without adapters; no dropout anywhere, so that a trial is a function of its seed alone.
        tokenizer: of the model.
        name: directory, GGUF file or hub id.
        objective: what its head is for.
        fresh: modules without weights in the checkpoint, drawn anew for each seed.
        trained_in_full: modules that every trial trains and saves beside its adapter: the fresh ones (or a saved
            adapter could not be put back on its base) and the head.
        targets: ``{layer: (d_in, d_out)}`` that get an adapter.
        longest: tokens of the longest input that the model takes.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    objective: Objective
    fresh: tuple[str, ...]
    trained_in_full: tuple[str, ...]
    targets: dict[str, tuple[int, int]]
    longest: int


def load_base(
    name: str,
    objective: Objective,
    target_modules: str | Sequence[str],
    ranks: Sequence[int],
    trust_remote_code: bool = False,
    quantization: str = "none",
) -> BaseModel:
    """Load a base with the head that an objective needs.

    Args:
        name: directory, GGUF file or hub id.
        objective: what its head is for.
        target_modules: as in `rankwise.models.config.ModelConfig`.
        ranks: to be trained.
        trust_remote_code: run Python code that comes with the model.
        quantization: of the frozen linear layers, one of `rankwise.models.config.QUANTIZATIONS`.

    Raises:
        RequestError: the model cannot be loaded, has no head to generate text where that is the task, the target
            modules match nothing, or a rank is too large.
    """
    import transformers

    check_model_files(name)
    check_quantization(quantization)
    place, file = load_arguments(name)
    auto_class = getattr(transformers, AUTO_CLASSES[objective.task_type])
    endings = keep = trained_heads(objective.task_type)
    with quiet_libraries():
        try:
            # Fresh weights are drawn again for each seed; this seed only makes loading repeatable.
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(
                place, **file, **objective.settings, trust_remote_code=trust_remote_code
            )
            _remove_dropout(config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, **file, trust_remote_code=trust_remote_code
            )
            while True:
                model, info = auto_class.from_pretrained(
                    place,
                    **file,
                    use_safetensors=None if file else True,
                    config=config,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    trust_remote_code=trust_remote_code,
                    **(
                        _unpacking()
                        if file and quantization == "none"
                        else loading_arguments(quantization, keep)
                    ),
                )
                absent = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
                fresh = _topmost_modules(model, absent)
                # What is trained in full is not quantised, and only loading tells what the checkpoint lacks.
                wrongly = [
                    one
                    for one in fresh
                    if any(map(is_quantized, model.get_submodule(one).modules()))
                ]
                if not wrongly:
                    break
                keep = (*keep, *wrongly)
        except (
            OSError,
            ValueError,
            KeyError,
            ImportError,
            AssertionError,
            SafetensorError,
        ) as error:
            raise RequestError(
                f"model {name!r} cannot be loaded: {first_sentence(error)}"
            ) from None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers makes one up, to which every word is unknown, where the files are missing.
        raise RequestError(
            f"model {name!r} has no tokenizer: save one beside it (tokenizer.save_pretrained)"
        )
    if tokenizer.pad_token is None:  # decoders often have none
        if tokenizer.eos_token is None:
            raise RequestError(
                f"model {name!r}: its tokenizer has neither a padding nor an end-of-sequence token; set one "
                "(tokenizer.pad_token = ...) and save it again"
            )
        tokenizer.pad_token = tokenizer.eos_token
    for part in (
        model.config,
        model.config.get_text_config(),
    ):  # a model of several parts asks the latter
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"  # so that places in a sequence stay where they are
    if "token_type_ids" not in inspect.signature(model.base_model.forward).parameters:
        tokenizer.model_input_names = [
            key for key in tokenizer.model_input_names if key != "token_type_ids"
        ]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.requires_grad_(False)
    if quantization != "none":
        prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=False
        )  # what is not quantised to fp32
        keep_as_loaded(model)
    if objective.task_type == "CAUSAL_LM":
        _check_causal(name, model, fresh)
    heads = [
        name for name, _ in model.named_children() if name.endswith(endings) and name not in fresh
    ]
    trained_in_full = (*fresh, *heads)
    targets = find_targets(model, target_modules, trained_in_full)
    check_ranks(ranks, targets)
    if quantization == "none":  # a quantised base is loaded where it runs
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
        model = model.to(device)
    longest = _longest_input(model, tokenizer)
    return BaseModel(model, tokenizer, name, objective, fresh, trained_in_full, targets, longest)


def _check_causal(name: str, model: Any, fresh: Sequence[str]) -> None:
    """Refuse what cannot be tuned to write: an encoder, which sees what it is to tell, or a head without weights."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if model.config.model_type in ENCODERS and not getattr(model.config, "is_decoder", False):
        raise RequestError(
            f"model {name!r} is an encoder ({model.config.model_type}), which cannot write text; "
            "task sft needs a causal language model"
        )
    if fresh:
        raise RequestError(
            f"model {name!r} has no weights for {fresh[0]}; task sft needs a whole causal language model"
        )


def _remove_dropout(config: Any) -> None:
    """Set every dropout rate of a config to 0: attention reads its rate from there."""
    for key, value in config.to_dict().items():
        if ("drop" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)


def _longest_input(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens the tokenizer and the model's positions allow."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for table in position_tables(model):
        limits.append(table.num_embeddings - first_position(table))
    return min(limit for limit in limits if isinstance(limit, int))


def _unpacking() -> dict[str, Any]:
    """Return what lets transformers unpack a GGUF file: else it takes the base for quantised, and trains no such model.

    Versions without that setting always unpack.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _topmost_modules(model: nn.Module, absent: set[str]) -> tuple[str, ...]:
    """Return the largest modules all of whose parameters are absent from the checkpoint."""
    found: list[str] = []
    for name, module in model.named_modules():  # parents come before their children
        keys = {f"{name}.{key}" for key, _ in module.named_parameters()}
        inside = any(name.startswith(f"{parent}.") for parent in found)
        if name and keys and not inside and keys <= absent:
            found.append(name)
    return tuple(found)
