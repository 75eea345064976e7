"""The kernels that a device would choose, on the ``meta`` device, which otherwise takes the plainest ones.

Most operators allocate the same everywhere: their outputs. Those here do not.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from rankwise.planning.memory.devices import Device

aten = torch.ops.aten
_plain_autocast = torch.autocast
_plain_softmax, _plain_dropout = functional.softmax, functional.dropout
HALF = (torch.float16, torch.bfloat16)


class DeviceKernels:
    """Meanwhile attention, softmax and dropout of ``torch.nn.functional`` are what they run as on a device.

    They are replaced, not overridden by a torch function mode: such a mode is off inside ``backward``, where
    gradient checkpointing computes them again.

    Args:
        device: to plan for.
        attention: ``sdpa`` for PyTorch's own choice; ``flash`` for a kernel that never keeps the scores, with keys
            and values repeated for it where it needs that. Eager attention never comes here.

    Attributes:
        kernels: names of the attention kernels chosen so far.
    """

    def __init__(self, device: Device, attention: str) -> None:
        self.device = device
        self.attention = attention
        self.kernels: set[str] = set()
        self._replaced = ExitStack()

    def __enter__(self) -> "DeviceKernels":
        replacements: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": self._attend}
        if self.device.capability:
            replacements |= {"softmax": _softmax, "dropout": _dropout}
        if hasattr(functional, "grouped_mm"):  # torch 2.10 and later
            replacements["grouped_mm"] = _grouped_mm
        for name, replacement in replacements.items():
            self._replaced.enter_context(patch.object(functional, name, replacement))
        self._replaced.enter_context(patch.object(torch, "autocast", _autocast))
        return self

    def __exit__(self, *error: object) -> None:
        self._replaced.close()

    def _attend(
        self,
        query: torch.Tensor,  # (b, heads, s, d)
        key: torch.Tensor,  # (b, groups, s, d)
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        kernel = self._choose(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        self.kernels.add(kernel)
        if kernel == "math":
            result, _ = aten._scaled_dot_product_attention_math(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            return result
        if kernel == "cpu":
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                attn_mask = _additive(attn_mask, query.dtype)
            return aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
        if kernel == "flash":
            return aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        if key.shape[1] != query.shape[1]:
            groups = query.shape[1] // key.shape[1]
            key, value = (
                key.repeat_interleave(groups, dim=1),
                value.repeat_interleave(groups, dim=1),
            )
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = _additive(attn_mask, query.dtype)
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        saved = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (query, key, value)
        )
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, saved, dropout_p, is_causal, scale=scale
        )[0]

    def _choose(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> str:
        """Choose as ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` does; on the CPU, ask PyTorch."""
        if not self.device.capability:
            shapes = tuple((tensor.shape[1], tensor.shape[3]) for tensor in (query, key, value))
            kind = None if mask is None else (mask.shape[1], mask.dtype)
            return _choose_on_cpu(shapes, query.dtype, kind, dropout, is_causal, scale, enable_gqa)
        width = query.shape[-1]
        is_even = width == value.shape[-1] and width <= 256
        if mask is None and query.dtype in HALF and is_even and self.device.capability >= 80:
            return "flash"
        if self.attention == "flash" or key.shape[1] == query.shape[1]:
            return "efficient"
        return "math"  # the memory-efficient kernel takes no grouped keys


@cache
def _choose_on_cpu(
    shapes: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    mask: tuple[int, torch.dtype] | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    with _disable_current_modes():
        query, key, value = (
            torch.zeros(1, heads, 2, width, dtype=dtype) for heads, width in shapes
        )
        small = None if mask is None else torch.zeros(1, mask[0], 2, 2, dtype=mask[1])
        choice = torch._fused_sdp_choice(
            query, key, value, small, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return "cpu" if choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value else "math"


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -math.inf)


def _softmax(x: torch.Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
    """fp16 to fp32 is one kernel on CUDA (``aten/src/ATen/native/SoftMax.cpp``, ``softmax``); bf16 is cast first."""
    if x.dtype is torch.float16 and kwargs.get("dtype") is torch.float32 and dim is not None:
        return aten._softmax(x, dim, True)
    return _plain_softmax(x, dim, *args, **kwargs)


def _dropout(
    x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """On CUDA dropout keeps a mask of one byte a number, elsewhere one in the input's precision."""
    if training and 0 < p < 1 and not inplace:
        return torch.native_dropout(x, p, True)[0]
    return _plain_dropout(x, p, training, inplace)


class _GroupedMatMul(torch.autograd.Function):
    """Experts' matrix product in any precision: PyTorch's ``meta`` kernel knows bf16 only."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # (tokens, d_in) x (experts, d_in, d_out) -> (tokens, d_out)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.like = rows.shape, rows.dtype
        return rows.new_empty(rows.shape[0], weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        _, weight = ctx.saved_tensors
        shape, dtype = ctx.like
        for_rows = gradient.new_empty(shape, dtype=dtype) if ctx.needs_input_grad[0] else None
        return for_rows, torch.empty_like(weight) if ctx.needs_input_grad[1] else None


def _grouped_mm(rows: torch.Tensor, weight: torch.Tensor, **_: Any) -> torch.Tensor:
    return _GroupedMatMul.apply(rows, weight)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """PEFT turns autocast off around stacked experts; there is none to turn off on the ``meta`` device."""
    return nullcontext() if device_type == "meta" else _plain_autocast(device_type, *args, **kwargs)


def _flash_scratch(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> int:
    """fp32 gradients of the queries, padded, and whole keys' and values' gradients where they are grouped.

    ``aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd``.
    """
    b, heads, s, d = query.shape
    rows, width = -(-s // 128) * 128, -(-d // 32) * 32
    expanded = 2 * b * heads * key.shape[2] * d * key.element_size() if key.shape[1] != heads else 0
    return 4 * b * heads * rows * (width + 1) + expanded


def _efficient_scratch(gradient: torch.Tensor, *_: Any, **__: Any) -> int:
    """``sum(gradient * output)`` in fp32 for inputs in fp32 (``attention_backward.cu``, ``kKernelComputesDelta``)."""
    return gradient.numel() * 4 if gradient.dtype is torch.float32 else 0


def _softmax_scratch(gradient: torch.Tensor, *_: Any, **__: Any) -> int:
    """``gradient * output`` (``aten/src/ATen/native/cuda/SoftMax.cu``, ``softmax_backward_cuda_out``)."""
    return gradient.numel() * gradient.element_size()


CUDA_SCRATCH: dict[Any, Callable[..., int]] = {
    aten._softmax_backward_data.default: _softmax_scratch,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_scratch,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_scratch,
}
"""Bytes that an operator's CUDA kernel takes from PyTorch's allocator beside its outputs, by its arguments."""
