"""Private names of torch, transformers, PEFT and bitsandbytes: read this file to upgrade one of them.

Each function wraps one private name, and its docstring says why no public one does the work. All of
them were checked on torch 2.13, transformers 5.23, PEFT 0.21 and bitsandbytes 0.50;
tests/models/test_compat.py reports a name that is gone. Libraries are imported inside the
functions, so that this module loads none of them.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import Trainer, TrainingArguments

# ---- All libraries: their output and their errors ----

CLEARER_MESSAGES = {
    "Padding_idx must be within num_embeddings": "pad_token_id must be below vocab_size"
}
"""PyTorch's messages about a wrong model config, in the words of the config."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' logs, warnings and progress bars inside the ``with`` block."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    """Return an error's first sentence as one line."""
    text = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
    return CLEARER_MESSAGES.get(text, text)


# ---- torch ----


@contextmanager
def intercept_operators(
    run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Call ``run(operator, args, kwargs)`` in place of every PyTorch operator inside the ``with`` block.

    `torch.utils._python_dispatch.TorchDispatchMode` is documented, but its module has no public name.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Interceptor(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return run(func, args, kwargs or {})

    with Interceptor():
        yield


def tensors_in(value: Any) -> "list[Tensor]":
    """Return the tensors inside nested lists, tuples and dicts.

    ``torch.utils._pytree`` is what autograd and the dispatcher use; it has no public name.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


# ---- transformers ----


def reinitialize(model: Any, module: "nn.Module") -> None:
    """Draw a module's weights again, as the transformers model that it belongs to initialises them.

    The public ``init_weights()`` draws a whole model, and skips each parameter that loading has
    marked as initialised.
    """
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]
        model._init_weights(child)


@contextmanager
def attention_implementation(model: "nn.Module", name: str) -> Iterator[None]:
    """Let all parts of a transformers model use a registered attention function inside the ``with`` block.

    The public ``set_attn_implementation()`` cannot be undone: nothing public tells what each part used before.
    """
    configs: dict[int, Any] = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def trainer_with_sampler(sampler: Any, **arguments: Any) -> "Trainer":
    """Return transformers' Trainer, but with its training examples in the order of a sampler.

    The Trainer takes the name of an order, and no sampler.
    """
    from transformers import Trainer

    class TrainerWithSampler(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return sampler

    return TrainerWithSampler(**arguments)


def use_at_most_one_gpu(arguments: "TrainingArguments") -> None:
    """Keep the Trainer from multiplying the batch size by the number of visible GPUs. ``n_gpu`` is read-only."""
    arguments._n_gpu = min(1, arguments.n_gpu)


# ---- PEFT ----


def expand_all_linear(config: "LoraConfig", model: "nn.Module") -> None:
    """Replace ``target_modules="all-linear"`` in a PEFT config by the names of linear layers.

    PEFT does this only while it puts the adapter on; no public function returns the names alone.
    """
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    _maybe_include_all_linear_layers(config, model)


# ---- bitsandbytes: attributes of its layers that its documentation does not name ----


def quantized_bits(module: "nn.Module") -> int | None:
    """Return 4 or 8 for a quantised linear layer, None for any other module.

    Classes are compared by name, so that bitsandbytes is not imported where nothing is quantised.
    PEFT's adapters around such layers have the same class names, but another module.
    """
    kind = type(module)
    if not kind.__module__.startswith("bitsandbytes."):
        return None
    return {"Linear4bit": 4, "Linear8bitLt": 8}.get(kind.__name__)


def fix_bnb_layout(layer: Any) -> None:
    """Bring a quantised layer's weight into its final layout, which no forward pass changes.

    There is no public setting. `rankwise.models.quantization.keep_as_loaded` says why it is needed.
    """
    if quantized_bits(layer) == 4:
        vars(layer)["support_avx512bf16_for_cpu"] = False
    elif layer.weight.CB is not None:
        layer.init_8bit_state()


def dequantize_bnb(layer: Any) -> "Tensor":
    """Return the weight of a quantised layer, (d_out, d_in); its state lies elsewhere for 8 bits."""
    from peft.utils.integrations import dequantize_bnb_weight

    weight: Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return weight


def quantized_tensors(layer: Any) -> "Iterator[Tensor]":
    """Yield the tensors of a quantised layer that are not parameters: codes, scales, scales of scales."""
    import torch

    quant_state = getattr(layer.weight, "quant_state", None)
    nested_state = getattr(quant_state, "state2", None)
    for holder in (layer.weight, quant_state, getattr(layer, "state", None), nested_state):
        if holder is not None:
            for value in vars(holder).values():
                if isinstance(value, torch.Tensor):
                    yield value
