"""The frozen base in few bits, by bitsandbytes (QLoRA, Dettmers et al. 2023)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

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
        quantization: one of `rankwise.models.config.QUANTIZATIONS`.
        keep: modules that stay as they are: those trained in full. None named, the output layer does, as transformers
            has it.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    skip = list(keep) or None
    if quantization == "int8":
        return {
            "quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        }
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization == "nf4-dq",
        bnb_4bit_compute_dtype=torch.bfloat16 if has_fast_bf16() else torch.float32,
        llm_int8_skip_modules=skip,  # of 4-bit layers as well
    )
    return {"quantization_config": config}


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a quantised linear layer of bitsandbytes; PEFT's adapters around them have the same names."""
    kind = type(module)
    return kind.__name__ in ("Linear4bit", "Linear8bitLt") and kind.__module__.startswith(
        "bitsandbytes."
    )


def keep_as_loaded(model: nn.Module) -> None:
    """Let quantised layers stay as they are from here on.

    On a CPU with AVX512-BF16 bitsandbytes rounds a 4-bit layer's scales to bf16 and lays its weights out anew, in
    place, the first time that it evaluates. From then on its products are in bf16 and have no gradient: the trials that
    train after the first evaluation would have another base than those before, and one that lets nothing learn. What an
    8-bit layer moves in its first pass is moved now, or two threads might move it at once.
    """
    layers: list[Any] = [module for module in model.modules() if is_quantized(module)]
    for layer in layers:
        if type(layer).__name__ == "Linear4bit":
            vars(layer)["support_avx512bf16_for_cpu"] = False
        elif layer.weight.CB is not None:
            layer.init_8bit_state()


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Let quantised layers compute in fp32, 8-bit ones with inputs as they are, until the end of the ``with`` block.

    In bf16 the logits of one example move by several percent with the shape of its batch, by rounding alone, and so
    they do with inputs rounded to 8 bits.
    """
    with ExitStack() as stack:
        for layer in filter(is_quantized, model.modules()):
            if type(layer).__name__ == "Linear4bit":
                stack.enter_context(_attribute(layer, "compute_dtype", torch.float32))
            else:
                stack.enter_context(_attribute(layer, "forward", partial(_unrounded, layer)))
        yield


@contextmanager
def _attribute(layer: nn.Module, name: str, value: Any) -> Iterator[None]:
    own = vars(layer)
    before = own.get(name)  # a method is the class's, unless something has hooked itself in
    own[name] = value
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before


def _unrounded(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(x, dequantized(layer).to(x.dtype), layer.bias)


def dequantized(layer: Any) -> torch.Tensor:
    """Return the weight of a quantised layer, (d_out, d_in)."""
    from peft.utils.integrations import dequantize_bnb_weight

    weight: torch.Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return weight


def mixes_rows(model: nn.Module) -> bool:
    """Whether what a layer makes of one row depends on the others in the same product.

    8-bit layers take a column in which any row has an outlier out of the 8 bits for all rows (LLM.int8(), Dettmers et
    al. 2022, section 3.2).
    """
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


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
                    yield from (
                        value for value in vars(holder).values() if isinstance(value, torch.Tensor)
                    )
