"""Loading of the frozen base model, with the head that a task needs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

from rankwise.errors import RankwiseError, RequestError, reading, shown
from rankwise.formatting import plain_bytes
from rankwise.models.auto import AUTO_CLASSES, first_position, position_tables, trained_heads
from rankwise.models.compat import quiet_libraries
from rankwise.models.compat_loading import conversion_errors_named
from rankwise.models.device import DTYPES, find_dtype, find_torch_device, precision_name
from rankwise.models.files import check_model_files, load_arguments
from rankwise.models.out_of_memory import OutOfMemory, attempt, free_memory
from rankwise.models.quantization import (
    check_quantization,
    is_quantized,
    keep_as_loaded,
    loading_arguments,
)
from rankwise.models.targets import check_ranks, find_targets
from rankwise.tasks.base import Encoded, Examples, Objective, Task


@dataclass
class BaseModel:
    """A frozen base model, shared by all trials.

    Attributes:
        model: The transformers model without adapters and without dropout, so that a trial depends
            on its seed alone.
        tokenizer: Pads on the right.
        name: Directory, GGUF file or hub id.
        objective: The loss, and the head that it needs.
        newly_initialized: Modules without weights in the checkpoint; each seed draws them.
        trained_in_full: Modules that a trial trains and saves with its adapter: the newly
            initialised ones and the head.
        targets: ``{layer: (d_in, d_out)}`` of the layers that get an adapter.
        max_length: Tokens of the longest input that the model takes.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    objective: Objective
    newly_initialized: tuple[str, ...]
    trained_in_full: tuple[str, ...]
    targets: dict[str, tuple[int, int]]
    max_length: int

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self._embedding.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the frozen weights and of their products.

        A model may keep some modules in fp32, quantised layers hold fewer bits, and modules trained
        in full are in fp32; the embeddings always have the type of the rest.
        """
        return self._embedding.dtype

    def encode(self, task: Task, examples: Examples, length: int) -> tuple[Encoded, int]:
        """Tokenise examples; return them with the number of shortened ones.

        Raises:
            RequestError: The tokenizer fails, or gives a token that the model has no row for.
        """
        with reading(f"the tokenizer of model {self.name!r} does not take the texts"):
            encoded, shortened = task.encoder(examples, self.tokenizer, length)
        rows = self._embedding.shape[0]
        largest = max(map(max, filter(None, encoded.input_ids)), default=0)
        if largest >= rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise RequestError(
                f"model {self.name!r} has {rows} rows of embeddings, and its tokenizer more: the "
                f"texts have token {largest}, {shown(token)}; save the model again after "
                "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer it came with"
            )
        return encoded, shortened

    @property
    def _embedding(self) -> torch.Tensor:
        weight: torch.Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return weight


@dataclass(frozen=True)
class Loading:
    """How a base model is loaded.

    Attributes:
        device: Device that holds the model, see `rankwise.models.device.find_torch_device`.
        precision: Precision of the weights, see `rankwise.models.device.find_dtype`.
        trust_remote_code: Run Python code that comes with the model.
    """

    device: str = "auto"
    precision: str = "auto"
    trust_remote_code: bool = False


def load_base(
    name: str,
    objective: Objective,
    target_modules: str | Sequence[str],
    ranks: Sequence[int],
    quantization: str = "none",
    loading: Loading = Loading(),
) -> BaseModel:
    """Load a base model with the head that an objective needs, once, onto the device that trains.

    Weights are read in the precision in which they compute. Modules trained in full are fp32.

    Args:
        name: Directory, GGUF file or hub id.
        objective: The loss, and the head that it needs.
        target_modules: Layers that get an adapter, as in `rankwise.models.config.ModelConfig`.
        ranks: Ranks to be trained.
        quantization: Precision of the frozen linear layers, one of
            `rankwise.models.config.Quantization`.
        loading: Device and precision.

    Raises:
        RequestError: The model cannot be loaded or does not suit the task, the device is not there,
            the target modules match nothing, or a rank is too large.
        RankwiseError: The device has too little memory for the model.
    """
    check_model_files(name)
    check_quantization(quantization)
    task_type = objective.task_type
    place, file = load_arguments(name)
    options: dict[str, Any] = {**file, "trust_remote_code": loading.trust_remote_code}
    device = find_torch_device(loading.device)
    placed = {**options, "dtype": find_dtype(loading.precision, device)}
    if quantization != "none" or device.type != "cpu":
        placed["device_map"] = {"": str(device)}  # weights go there without a copy on the CPU
    with quiet_libraries(), reading(f"model {name!r} cannot be loaded"):
        try:
            # Each trial draws new modules from its own seed. This one makes loading repeatable.
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(place, **options, **objective.settings)
            _remove_dropout(config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
            load = partial(_load_weights, place, config, task_type, quantization, placed)
            model, new_modules = attempt(load)
        except OutOfMemory:
            weights = _count_weights(config, task_type, loading.trust_remote_code)
            raise _too_large(name, weights, placed["dtype"], quantization, device) from None
        _check_finite(name, model)
        _prepare_tokenizer(name, tokenizer, model)
        _freeze(model)
        if task_type == "CAUSAL_LM":
            _check_causal(name, model, new_modules)
        endings = trained_heads(task_type)
        heads = [child for child, _ in model.named_children() if child.endswith(endings)]
        trained_in_full = tuple(dict.fromkeys([*new_modules, *heads]))
        targets = find_targets(model, target_modules, trained_in_full)
        check_ranks(ranks, targets)
        if placed["dtype"] != torch.float32:
            compute_in_fp32([model.get_submodule(name) for name in trained_in_full])
        max_length = _max_length(model, tokenizer)
    return BaseModel(
        model, tokenizer, name, objective, new_modules, trained_in_full, targets, max_length
    )


def _remove_dropout(config: Any) -> None:
    """Set every dropout rate in a config to 0; attention reads its rate from there."""
    for key, value in config.to_dict().items():
        if ("drop" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)


def _load_weights(
    place: str, config: Any, task_type: str, quantization: str, options: dict[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """Return the model, and the names of the modules that the checkpoint has no weights for.

    These modules must not be quantised, and are known only after loading. So a quantised model may
    be loaded twice.
    """
    auto_class = getattr(transformers, AUTO_CLASSES[task_type])
    from_gguf = "gguf_file" in options
    keep = trained_heads(task_type)
    while True:
        with conversion_errors_named():
            model, info = auto_class.from_pretrained(
                place,
                **options,
                use_safetensors=None if from_gguf else True,
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_quantization_arguments(quantization, keep, options),
            )
        mismatched = {key for key, *_ in info["mismatched_keys"]}
        new_modules = _topmost_modules(model, set(info["missing_keys"]) | mismatched)
        modules = {name: model.get_submodule(name).modules() for name in new_modules}
        quantized = [name for name, parts in modules.items() if any(map(is_quantized, parts))]
        if not quantized:
            return model, new_modules
        keep = (*keep, *quantized)


def _count_weights(config: Any, task_type: str, trust_remote_code: bool) -> int:
    """Return the number of weights of a model, without making any."""
    auto_class = getattr(transformers, AUTO_CLASSES[task_type])
    with torch.device("meta"), no_init_weights():
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return sum(weight.numel() for weight in model.parameters())


def _too_large(
    name: str, weights: int, dtype: torch.dtype, quantization: str, device: torch.device
) -> RankwiseError:
    """Return the error that says what a model needs, what its device has, and what to change."""
    precision = precision_name(dtype)
    size = f"{plain_bytes(weights * dtype.itemsize)} in {precision}"
    changes = ["another --device"]
    if not quantization.startswith("nf4"):
        changes.insert(0, "--quantization nf4")
    if quantization != "none":
        size += f", before they are brought to {quantization}"
    if precision == "fp32":
        changes.insert(0, "--precision bf16")
    return RankwiseError(
        f"out of memory: model {name!r} does not fit on {device}: its weights take {size}; "
        f"{plain_bytes(free_memory(device))} are free; take {' or '.join(changes)}"
    )


def _quantization_arguments(
    quantization: str, keep: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that say how weights are quantised.

    A GGUF file is unpacked to floats, because the Trainer refuses a model called quantised.
    """
    if quantization == "none" and "gguf_file" in options:
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return loading_arguments(quantization, keep, options["dtype"])


def _topmost_modules(model: nn.Module, absent: set[str]) -> tuple[str, ...]:
    """Return the largest modules that have no parameter in the checkpoint."""
    topmost: list[str] = []
    for name, module in model.named_modules():  # parents come before their children
        keys = {f"{name}.{key}" for key, _ in module.named_parameters()}
        is_inside = any(name.startswith(f"{parent}.") for parent in topmost)
        if name and keys and not is_inside and keys <= absent:
            topmost.append(name)
    return tuple(topmost)


def _prepare_tokenizer(name: str, tokenizer: Any, model: Any) -> None:
    """Make a tokenizer pad on the right with a token that the model knows, or refuse it."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers makes up a tokenizer without words where its files are missing.
        problem = "has no tokenizer: save one in its directory (tokenizer.save_pretrained)"
        raise RequestError(f"model {name!r} {problem}")
    rows = model.get_input_embeddings().weight.shape[0]
    # None is usual for decoders, and so is a token added without a row for it.
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        if tokenizer.eos_token is None:
            raise RequestError(
                f"model {name!r}: its tokenizer has neither a padding nor an end-of-sequence "
                "token; set one (tokenizer.pad_token = ...) and save it again"
            )
        tokenizer.pad_token = tokenizer.eos_token
    # A classifier of a multimodal model reads the padding token from the config of its text part.
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"  # so that padding does not shift a token's position
    if "token_type_ids" not in inspect.signature(model.base_model.forward).parameters:
        names = [key for key in tokenizer.model_input_names if key != "token_type_ids"]
        tokenizer.model_input_names = names


def _check_finite(name: str, model: nn.Module) -> None:
    """Refuse a model with a weight that is NaN or infinite, which makes every loss so."""
    for key, weight in model.named_parameters():
        if weight.dtype in DTYPES.values() and weight.numel():
            ends = torch.stack(torch.aminmax(weight.detach()))  # NaN if any weight is
            if not bool(torch.isfinite(ends).all()):
                precision = precision_name(weight.dtype)
                problem = f"{key} has weights that are not finite in {precision}"
                raise RequestError(f"model {name!r}: {problem}; download or save it again")


def _freeze(model: nn.Module) -> None:
    """Turn off gradients and dropout, and keep quantised weights as they are."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.requires_grad_(False)
    keep_as_loaded(model)


def compute_in_fp32(modules: Sequence[nn.Module]) -> None:
    """Bring modules to fp32, and their inputs too.

    They are trained, and small updates would be lost in half precision; logits of a head would be
    rounded before the loss. The hook goes with every copy that a trial trains.
    """
    for module in modules:
        module.float()
        module.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(each.to(dtype) if torch.is_tensor(each) else each for each in inputs)


def _check_causal(name: str, model: Any, new_modules: Sequence[str]) -> None:
    """Refuse an encoder, and a model with missing weights."""
    if model.config.model_type in ENCODERS and not getattr(model.config, "is_decoder", False):
        kind = f"is an encoder ({model.config.model_type}), which cannot write text"
        raise RequestError(f"model {name!r} {kind}; task sft needs a causal language model")
    if new_modules:
        missing = f"has no weights for {new_modules[0]}"
        raise RequestError(f"model {name!r} {missing}; task sft needs a whole language model")


def _max_length(model: nn.Module, tokenizer: Any) -> int:
    """Return the most tokens that the tokenizer and the model's position tables allow."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for table in position_tables(model):
        limits.append(table.num_embeddings - first_position(table))
    return min(limit for limit in limits if isinstance(limit, int))
