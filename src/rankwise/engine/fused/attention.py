"""Attention over packed sequences: each sequence alone.

On a GPU in half precision one kernel takes all sequences (`varlen_attn`). Elsewhere sequences of
similar length attend together, in blocks (`rankwise.engine.fused.attention_blocks`).
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, get_args

import torch
from transformers import AttentionInterface

from rankwise.engine.config import AttentionName
from rankwise.engine.fused.attention_blocks import Rule, attend_in_blocks
from rankwise.engine.fused.packing import Packing, current_packing
from rankwise.errors import RequestError

NEEDS = {"scale", "window_size", "enable_gqa"}  # parameters of varlen_attn, from PyTorch 2.12 on
VARLEN_CAPABILITY = (8, 0)  # Ampere: the first NVIDIA GPUs with PyTorch's flash kernel
WIDEST = 256  # of that kernel's heads


def attention_name(kernel: AttentionName) -> str:
    """Return the key of packed attention in transformers' registry."""
    return f"rankwise_packed_{kernel}"


def register() -> None:
    """Add packed attention to transformers' registry. Without a mask function, no mask is built."""
    for kernel in get_args(AttentionName):
        AttentionInterface.register(attention_name(kernel), partial(packed_attention, kernel))


@cache
def varlen_function() -> Callable[..., Any] | None:
    """Return PyTorch's attention over sequences of any lengths; None if it lacks what is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    has = inspect.signature(varlen_attn).parameters
    return varlen_attn if has.keys() >= NEEDS else None


def runs_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device attends to sequences of any lengths in one kernel."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= VARLEN_CAPABILITY
        and varlen_function() is not None
    )


def check_attention(kernel: AttentionName, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a kernel that a device does not have.

    Raises:
        RequestError: it is ``varlen`` and does not run there.
    """
    if kernel == "varlen" and not runs_varlen(device, dtype):
        raise RequestError(
            "attention 'varlen' needs PyTorch 2.12, a GPU of the Ampere generation or later, and "
            f"precision bf16 or fp16, not {device.type} in {str(dtype).removeprefix('torch.')}; "
            "take auto or blocks"
        )


def packed_attention(
    kernel: AttentionName,
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, h, T, d)
    key: torch.Tensor,  # (1, h_kv, T, d)
    value: torch.Tensor,  # (1, h_kv, T, d)
    attention_mask: torch.Tensor | None,  # ignored; the packing takes its place
    scaling: float | None = None,  # d ** -0.5 by default
    is_causal: bool | None = None,  # that of the module by default
    sliding_window: int | None = None,  # tokens that a token sees, itself included
    softcap: float | None = None,  # bound of the scores' absolute values (Gemma 2, section 2)
    s_aux: torch.Tensor | None = None,  # sinks, a score of each head that no token has, (h,)
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of the current `rankwise.engine.fused.packing.packed` block.

    The parameters after the kernel are those of transformers' attention functions. Returns
    (1, T, h, d), and no weights.
    """
    packing = current_packing()
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    plain = softcap is None and s_aux is None
    is_there = runs_varlen(query.device, query.dtype)
    if kernel != "blocks" and plain and is_there and varlen_takes(query, key, value):
        return _attend_varlen((query, key, value), packing, causal, sliding_window, scale), None
    rule = Rule(causal, sliding_window, scale, softcap, s_aux)
    return attend_in_blocks(query, key, value, packing, rule), None


def varlen_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `varlen_attn` takes these heads: of one width, a multiple of 8, up to 256.

    Some generations of GPUs have no gradient for widths from 193 to 224.
    """
    width = query.shape[-1]
    return (
        query.dtype == key.dtype == value.dtype
        and value.shape[-1] == width
        and width % 8 == 0
        and (width <= 192 or 224 < width <= WIDEST)
    )


def _attend_varlen(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],  # query, key and value, (1, h, T, d)
    packing: Packing,
    causal: bool,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Attend by one kernel, which takes (T, h, d)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in heads)
    back = -1 if window is None else window - 1  # tokens before a token that it sees; -1 is all
    attend = varlen_function()
    assert attend is not None
    output: torch.Tensor = attend(
        query,
        key,
        value,
        packing.cu_seqlens,
        packing.cu_seqlens,
        packing.longest,
        packing.longest,
        scale=scale,
        window_size=(back, 0 if causal else back),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]
