"""A frozen base model in few bits, by bitsandbytes (QLoRA, Dettmers et al. 2023)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from rankwise.errors import RequestError
from rankwise.models import compat


def check_quantization(quantization: str) -> None:
    """Refuse quantisation if bitsandbytes is not installed.

    Raises:
        RequestError: it is missing.
    """
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise RequestError(
            f"quantization {quantization!r} needs the package 'bitsandbytes': "
            "pip install 'rankwise[qlora]', or take --quantization none"
        )


def check_optimizer(optimizer: str, device: torch.device) -> None:
    """Refuse an optimizer that the device or the installed packages lack.

    Args:
        optimizer: One of `rankwise.engine.config.OptimizerName`.
        device: The device that trains.

    Raises:
        RequestError: It needs bitsandbytes, which is missing or has no kernel for the device.
    """
    if optimizer != "adamw-8bit":
        return
    if find_spec("bitsandbytes") is None:
        raise RequestError(
            f"optimizer {optimizer!r} needs the package 'bitsandbytes': "
            "pip install 'rankwise[qlora]', or take --optimizer adamw"
        )
    if device.type == "mps":
        raise RequestError(f"optimizer {optimizer!r} has no kernel for {device}; take adamw")


def loading_arguments(quantization: str, keep: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that load a base in few bits.

    Args:
        quantization: One of `rankwise.models.config.Quantization`; ``"none"`` needs no argument.
        keep: Modules that stay unquantised; if empty, transformers keeps the output layer.
        dtype: Type in which 4-bit layers compute, that of the rest of the base.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    # transformers reads this setting for 4-bit layers as well.
    skipped = {"llm_int8_skip_modules": list(keep) or None}
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, **skipped)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization == "nf4-dq",
        bnb_4bit_compute_dtype=dtype,
        **skipped,
    )
    return {"quantization_config": config}


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a quantised linear layer of bitsandbytes."""
    return compat.quantized_bits(module) is not None


def keep_as_loaded(model: nn.Module) -> None:
    """Stop bitsandbytes from changing quantised weights when the model runs.

    On a CPU with AVX512-BF16 the first evaluation rounds the scales of 4-bit layers to bf16 and
    rearranges the weights; from then on their products are in bf16 and have no gradient. 8-bit
    layers move their weights on the first pass; they do so here, before threads share the model.
    """
    for layer in filter(is_quantized, model.modules()):
        compat.fix_bnb_layout(layer)


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Make quantised layers compute in fp32, without rounding inputs, inside the ``with`` block.

    Rounding to bf16 or 8 bits moves the logits of an example by several percent with the shape of
    its batch.
    """
    with ExitStack() as stack:
        for layer in model.modules():
            bits = compat.quantized_bits(layer)
            if bits == 4:
                stack.enter_context(_attribute(layer, "compute_dtype", torch.float32))
            elif bits == 8:
                stack.enter_context(_attribute(layer, "forward", partial(_exact_forward, layer)))
        yield


@contextmanager
def _attribute(layer: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a layer inside the ``with`` block."""
    attributes = vars(layer)
    before = attributes.get(name)  # None for a method, which the class holds
    attributes[name] = value
    try:
        yield
    finally:
        if before is None:
            del attributes[name]
        else:
            attributes[name] = before


def _exact_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(x, compat.dequantize_bnb(layer).to(x.dtype), layer.bias)


def mixes_rows(model: nn.Module) -> bool:
    """Whether a layer's output for one row depends on the other rows in the same product.

    An 8-bit layer computes a column in higher precision for all rows if any row has an outlier
    there (LLM.int8(), Dettmers et al. 2022, section 3.2).
    """
    return any(compat.quantized_bits(module) == 8 for module in model.modules())


def resident_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield all tensors that a frozen model keeps in memory: weights, buffers and their scales."""
    yield from model.parameters()
    yield from model.buffers()
    for module in filter(is_quantized, model.modules()):
        yield from compat.quantized_tensors(module)
