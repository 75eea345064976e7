"""Quantised linear layers without weights: what bitsandbytes keeps and allocates, on ``meta``.

The layers of bitsandbytes need its compiled library to quantise a weight. The layers here take the
same memory at the same moments without it. Sources: ``bitsandbytes/nn/modules.py``,
``autograd/_functions.py`` (``MatMul4Bit``, ``MatMul8bitLt``, ``MatMul8bitFp``) and
``backends/cuda/ops.py`` (``_dequant_linear_fallback``), version 0.50; ``peft/tuners/lora/bnb.py``
for the adapter around them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankwise.models.compat import quiet_libraries

with quiet_libraries():  # bitsandbytes, which PEFT imports, warns about kernels that it misses
    from peft.tuners.lora.layer import Linear as LoraLinear

NF4_BLOCK = 64
"""Weights that share a scale (QLoRA, Dettmers et al. 2023, section 3)."""
SCALE_BLOCK = 256
"""Scales that share a second scale, in double quantisation."""
OUTLIER = 6.0
"""Default threshold of bitsandbytes: larger inputs are multiplied in fp16."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer ``(d_in -> d_out)`` kept in few bits.

    Args:
        source: the layer to replace (``nn.Linear`` or GPT-2's ``Conv1D``).
        dtype: precision of the dequantised weight and of the computation.
        on_cpu: plan for the CPU, where bitsandbytes dequantises inside an operator, outside
            PyTorch's allocator.
    """

    def __init__(self, source: nn.Module, dtype: torch.dtype, on_cpu: bool) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        if isinstance(source, nn.Linear):
            self.in_features, self.out_features = source.in_features, source.out_features
        else:
            self.in_features, self.out_features = source.weight.shape  # type: ignore[misc]
        self.dtype = dtype
        self.on_cpu = on_cpu
        self.bias = source.bias  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A dequantised copy (d_out, d_in), which PEFT needs for DoRA."""
        return QuantizedLinear.dequantize(self, self.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (d_out, d_in)."""
        any_parameter = next(self.parameters())  # on the device that stands for the layer's
        return any_parameter.new_empty((self.out_features, self.in_features), dtype=dtype)

    def add_frozen(self, name: str, count: int, dtype: torch.dtype) -> None:
        """Add a frozen parameter of ``count`` numbers."""
        tensor = torch.empty(count, dtype=dtype, device="meta")
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


class NF4Linear(QuantizedLinear):
    """``Linear4bit`` of bitsandbytes with NF4, with or without double quantisation."""

    planned_bits = 4

    def __init__(self, source: nn.Module, dtype: torch.dtype, on_cpu: bool, double: bool) -> None:
        super().__init__(source, dtype, on_cpu)
        self.is_nested = double
        weights = self.in_features * self.out_features
        self.scales = math.ceil(weights / NF4_BLOCK)
        self.add_frozen("packed", math.ceil(weights / 2), torch.uint8)
        self.add_frozen("absmax", self.scales, torch.uint8 if double else torch.float32)
        self.add_frozen("code", 16, torch.float32)
        if double:
            self.add_frozen("nested_absmax", math.ceil(self.scales / SCALE_BLOCK), torch.float32)
            self.add_frozen("nested_code", 256, torch.float32)
            self.add_frozen("offset", 1, torch.float32)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (d_out, d_in); double quantisation also allocates fp32 scales."""
        scales = None
        if self.is_nested:
            scales = next(self.parameters()).new_empty(self.scales, dtype=torch.float32)
        weight = super().dequantize(dtype)
        del scales
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out) in the computing precision, then cast to that of x."""
        input_dtype = x.dtype
        x = x.to(self.dtype)
        return _NF4MatMul.apply(x, self).to(input_dtype)


class _NF4MatMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        if layer.on_cpu:
            return x.new_empty((*x.shape[:-1], layer.out_features))
        return functional.linear(x, layer.dequantize(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        weight = ctx.layer.dequantize(ctx.layer.dtype).to(gradient.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None
        return torch.matmul(gradient, weight), None


class Int8Linear(QuantizedLinear):
    """``Linear8bitLt`` of bitsandbytes in training: default threshold, no outliers."""

    planned_bits = 8

    def __init__(self, source: nn.Module, dtype: torch.dtype, on_cpu: bool) -> None:
        super().__init__(source, dtype, on_cpu)
        self.add_frozen("rows", self.in_features * self.out_features, torch.int8)
        self.add_frozen("row_scales", self.out_features, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out) in the precision of the input."""
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        return _Int8MatMul.apply(x, self)


class _Int8MatMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer, ctx.x = layer, x  # the input is kept although the layer is frozen
        if layer.on_cpu:
            return functional.linear(x, layer.dequantize(x.dtype), layer.bias)
        rows = x.reshape(-1, x.shape[-1])
        half = rows.to(torch.float16)
        outliers = half.abs() >= OUTLIER
        del outliers
        quantized = torch.empty(rows.shape, dtype=torch.int8, device="meta")
        products = torch.empty(rows.shape[0], layer.out_features, dtype=torch.int32, device="meta")
        result = torch.empty(*x.shape[:-1], layer.out_features, dtype=x.dtype, device="meta")
        del half, quantized, products
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        weight = ctx.layer.dequantize(ctx.x.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None
        return torch.matmul(gradient.to(ctx.x.dtype), weight), None


class QuantizedLora(LoraLinear):
    """PEFT's adapter around a quantised layer, as ``peft.tuners.lora.bnb`` has it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add the output of the adapter, in its precision, to that of the frozen layer."""
        result = self.base_layer(x, *args, **kwargs)
        if isinstance(self.base_layer, NF4Linear):
            result = result.clone()
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A:
            return result
        lora_a: Any = self.lora_A[adapter]
        lora_b: Any = self.lora_B[adapter]
        casts = not torch.is_autocast_enabled()  # on CUDA: PEFT casts under a CPU's autocast
        if casts:
            x = x.to(lora_a.weight.dtype)
        if adapter in self.lora_variant:  # DoRA
            forward = self.lora_variant[adapter].forward
            output: Tensor = forward(self, active_adapter=adapter, x=x, result=result)
            return output.to(result.dtype) if casts else output
        added = lora_b(lora_a(self.lora_dropout[adapter](x))) * self.scaling[adapter]
        return result + (added.to(result.dtype) if casts else added)


def quantize(
    model: Any, quantization: str, dtype: torch.dtype, on_cpu: bool, keep: tuple[str, ...]
) -> None:
    """Replace the linear layers of a model, in place, as loading it quantised would.

    Args:
        model: a transformers model without adapters.
        quantization: int8, nf4 or nf4-dq.
        dtype: the computing precision.
        on_cpu: plan for the CPU.
        keep: names of modules to leave as they are.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = [*get_keys_to_not_convert(model), *keep]
    for name, module in list(model.named_modules()):
        is_linear = type(module) is nn.Linear or isinstance(module, Conv1D)
        if not is_linear or not should_convert_module(name, skipped):
            continue
        if quantization == "int8":
            model.set_submodule(name, Int8Linear(module, dtype, on_cpu))
        else:
            is_double = quantization == "nf4-dq"
            model.set_submodule(name, NF4Linear(module, dtype, on_cpu, double=is_double))
    setattr(model, "is_loaded_in_8bit" if quantization == "int8" else "is_loaded_in_4bit", True)


def largest_dequantized(model: nn.Module) -> int:
    """Return bytes of the largest weight that is dequantised during a step; 0 without any."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    return max((layer.weight.nbytes for layer in layers), default=0)
