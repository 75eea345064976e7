"""Attention, softmax and dropout kernels of a device, chosen while a model runs on ``meta``.

On ``meta`` PyTorch takes its plainest kernels. Most operators allocate the same everywhere, namely
their outputs; the operators in this file do not.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rankwise.models import compat
from rankwise.planning.memory.autocast import Casts
from rankwise.planning.memory.devices import Device

HALF_PRECISION = (torch.float16, torch.bfloat16)


class DeviceKernels(TorchFunctionMode):
    """Runs attention, softmax and dropout as a device would, inside a ``with`` block.

    With autocast all other functions get their arguments in the precision that it gives them.

    PyTorch leaves such a mode while it runs ``backward``. Gradient checkpointing, which runs
    blocks again there, must be given `checkpoint_contexts`.

    Args:
        device: the device that is planned for.
        attention: ``sdpa`` for PyTorch's own choice; ``flash`` for a kernel that never keeps the
            scores, with keys and values repeated where it needs that. Eager attention of
            transformers calls none of these kernels.
        autocast: the lower precision of autocast; None without autocast.

    Attributes:
        chosen: names of the attention kernels chosen so far.
        casts: the casts of autocast; None without autocast.
    """

    def __init__(self, device: Device, attention: str, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.device = device
        self.attention = attention
        self.chosen: set[str] = set()
        self.casts = None if autocast is None else Casts(autocast, device.is_cpu)
        self._replacements: dict[Any, Callable[..., Any]] = {
            functional.scaled_dot_product_attention: self._attend,
            compat.grouped_matmul(): _grouped_mm,
        }
        if not device.is_cpu:
            self._replacements[functional.softmax] = _softmax
            self._replacements[functional.dropout] = _dropout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.casts is not None:
            args, kwargs = self.casts.arguments(func, args, kwargs)
        return self._replacements.get(func, func)(*args, **kwargs)

    def __enter__(self) -> "DeviceKernels":
        if self.casts is not None:
            self.casts.switch_on()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.casts is not None:
            self.casts.switch_back()

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], "DeviceKernels"]:
        """Return the two contexts of a block, as ``torch.utils.checkpoint``'s ``context_fn``."""
        return nullcontext(), self

    def _attend(
        self,
        query: Tensor,  # (b, heads, s, d)
        key: Tensor,  # (b, groups, s, d)
        value: Tensor,  # (b, groups, s, d)
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Take the place of ``scaled_dot_product_attention``, with its parameters."""
        options = (dropout_p, is_causal, scale, enable_gqa)
        call = compat.AttentionCall(query, key, value, attn_mask, *options)
        kernel = self._choose(call)
        self.chosen.add(kernel)
        if kernel == "flash":
            return compat.flash_attention(call)
        if kernel == "math":
            return compat.math_attention(call)
        mask = attn_mask
        if mask is not None and mask.dtype == torch.bool:  # fused kernels add it to the scores
            added = torch.zeros_like(mask, dtype=query.dtype)
            mask = added.masked_fill_(mask.logical_not(), -inf)
        if kernel == "cpu":
            return compat.cpu_attention(call._replace(mask=mask))
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        if mask is not None:
            mask = mask.expand(*query.shape[:3], key.shape[2])
        return compat.efficient_attention(call._replace(key=key, value=value, mask=mask))

    def _choose(self, call: compat.AttentionCall) -> str:
        """Choose as ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` does on CUDA."""
        query, key, value, mask = call[:4]
        if self.device.is_cpu:
            sizes = tuple((tensor.shape[1], tensor.shape[3]) for tensor in (query, key, value))
            mask_kind = None if mask is None else (mask.shape[1], mask.dtype)
            return _choose_on_cpu(sizes, query.dtype, mask_kind, *call[4:])
        width = query.shape[-1]
        flash_takes_width = width == value.shape[-1] and width <= 256
        flash_takes_inputs = mask is None and query.dtype in HALF_PRECISION and flash_takes_width
        if flash_takes_inputs and self.device.capability >= 80:
            return "flash"
        if self.attention == "flash" or key.shape[1] == query.shape[1]:
            return "efficient"
        return "math"  # the memory-efficient kernel takes no grouped keys


@cache
def _choose_on_cpu(
    sizes: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    mask_kind: tuple[int, torch.dtype] | None,
    *options: Any,
) -> str:
    """Ask PyTorch, with real tensors of two tokens; ``sizes`` are heads and width of each."""
    query, key, value = (torch.zeros(1, heads, 2, width, dtype=dtype) for heads, width in sizes)
    mask = None
    if mask_kind is not None:
        mask = torch.zeros(1, mask_kind[0], 2, 2, dtype=mask_kind[1])
    call = compat.AttentionCall(query, key, value, mask, *options)
    return "cpu" if compat.cpu_fuses_attention(call) else "math"


def _softmax(x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """Run softmax from fp16 to fp32 as one kernel, as CUDA does; bf16 is cast first.

    See ``aten/src/ATen/native/SoftMax.cpp``, ``softmax``.
    """
    if x.dtype is torch.float16 and kwargs.get("dtype") is torch.float32 and dim is not None:
        return compat.softmax_to_fp32(x, dim)
    return functional.softmax(x, dim, *args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Run dropout that keeps a mask of one byte a number, as CUDA does."""
    if training and 0 < p < 1 and not inplace:
        return torch.native_dropout(x, p, True)[0]
    return functional.dropout(x, p, training, inplace)


class _GroupedMatMul(torch.autograd.Function):
    """Matrix products of stacked experts in any precision: PyTorch's ``meta`` kernel takes bf16."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        # (tokens, d_in) x (experts, d_in, d_out) -> (tokens, d_out)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.dtype = rows.shape, rows.dtype
        return rows.new_empty(rows.shape[0], weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        _, weight = ctx.saved_tensors
        rows_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            rows_gradient = gradients[0].new_empty(ctx.shape, dtype=ctx.dtype)
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.empty_like(weight)
        return rows_gradient, weight_gradient


def _grouped_mm(rows: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return _GroupedMatMul.apply(rows, weight)


def _flash_scratch(gradient: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Count padded fp32 gradients of the queries, and gradients of grouped keys and values.

    See ``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd``.
    """
    b, heads, s, d = query.shape
    rows, width = -(-s // 128) * 128, -(-d // 32) * 32
    expanded = 0
    if key.shape[1] != heads:
        expanded = 2 * b * heads * key.shape[2] * d * key.element_size()
    return 4 * b * heads * rows * (width + 1) + expanded


def _efficient_scratch(gradient: Tensor, *_: Any, **__: Any) -> int:
    """Count ``sum(gradient * output)`` (``attention_backward.cu``, ``kKernelComputesDelta``)."""
    return gradient.numel() * 4 if gradient.dtype is torch.float32 else 0


def _softmax_scratch(gradient: Tensor, *_: Any, **__: Any) -> int:
    """Count ``gradient * output`` (``cuda/SoftMax.cu``, ``softmax_backward_cuda_out``)."""
    return gradient.numel() * gradient.element_size()


CUDA_SCRATCH: dict[Any, Callable[..., int]] = dict(
    zip(
        compat.attention_backward(),
        (_softmax_scratch, _flash_scratch, _efficient_scratch),
        strict=True,
    )
)
"""Bytes that a CUDA kernel allocates besides its outputs, from the operator's arguments."""
