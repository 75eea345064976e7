"""The frozen base in few bits, by bitsandbytes (QLoRA, Dettmers et al. 2023)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from rankwise.errors import RequestError


def check_quantization(quantization: str) -> None:
    """Refuse a quantisation that needs what is not installed.

    Raises:
        RequestError: bitsandbytes is missing.
    """
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise RequestError(
            f"quantization {quantization!r} needs the package 'bitsandbytes': pip install 'rankwise[qlora]', "
            "or take --quantization none"
        )


def has_fast_bf16() -> bool:
    """Whether the GPU has bfloat16 itself: on those before Ampere PyTorch emulates it, and calls that supported."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def loading_arguments(quantization: str, keep: Sequence[str]) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to load a base in few bits; nothing for ``"none"``.

    Products are in fp32 on a CPU, whose adapters are too, and in bfloat16 on a GPU that has it, as QLoRA has them.

    Args:
        quantization: one of `rankwise.config.QUANTIZATIONS`.
        keep: modules that stay as they are: those trained in full. None named, the output layer does, as transformers
            has it.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    skip = list(keep) or None
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization == "nf4-dq",
        bnb_4bit_compute_dtype=torch.bfloat16 if has_fast_bf16() else torch.float32,
        llm_int8_skip_modules=skip,  # of 4-bit layers as well
    )
    return {"quantization_config": config}


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a quantised linear layer of bitsandbytes."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def keep_as_loaded(model: nn.Module) -> None:
    """Let 4-bit layers stay as they were loaded.

    On a CPU with AVX512-BF16 bitsandbytes rounds a layer's scales to bf16 and lays its weights out anew, in place, the
    first time that it evaluates. From then on its products are in bf16 and have no gradient: the trials that train
    after the first evaluation would have another base than those before, and one that lets nothing learn.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            vars(module)["support_avx512bf16_for_cpu"] = False


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Let 4-bit layers compute in fp32 until the end of the ``with`` block.

    In bf16 the logits of one example move by several percent with the shape of its batch, by rounding alone.
    """
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    before = [layer.compute_dtype for layer in layers]
    try:
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for layer, dtype in zip(layers, before, strict=True):
            layer.compute_dtype = dtype


def resident_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield what a frozen model keeps in memory: parameters, buffers, and the scales of quantised weights."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if is_quantized(module):
            weight: Any = module.weight
            holders = (weight, getattr(weight, "quant_state", None), getattr(module, "state", None))
            for holder in (*holders, getattr(holders[1], "state2", None)):
                if holder is not None:
                    yield from (value for value in vars(holder).values() if isinstance(value, torch.Tensor))
