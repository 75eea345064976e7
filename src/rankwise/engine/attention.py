"""Attention over a packing: every sequence alone, heads and sequences of like length together."""

import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rankwise.engine.packing import Block, HeadIndex, Packing, current_packing, hide

NAME = "rankwise_packed"  # under which transformers knows it
LONG = 192  # tokens from which a CPU's flash attention, which stores no scores, is also the faster


def register() -> None:
    """Make it known to transformers.

    No mask function is registered beside it, so that models build no mask (transformers, masking_utils).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of the current packing (see `rankwise.engine.packing.packed`).

    Args:
        module: the model's attention layer; its ``is_causal`` holds unless the argument says otherwise.
        query: (1, h, T, d).
        key: (1, h_kv, T, d).
        value: (1, h_kv, T, d).
        attention_mask: ignored: the packing says who sees whom.
        scaling: of the scores; ``d ** -0.5`` unless given.
        is_causal: whether a token sees only those before it.
        sliding_window: how many tokens back it sees, itself counted.
        softcap: scores are squeezed into ± this (Gemma 2, section 2).

    Returns:
        (1, T, h, d), and no weights.
    """
    packing = current_packing()
    heads, tokens, width = query.shape[1:]
    kv_heads = key.shape[1]
    scaling = width**-0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    by_block = zip(*(regrouped(tensor, packing) for tensor in (query, key, value)), strict=True)
    outputs = []
    for block, key_mask, (q, k, v) in zip(packing.blocks, packing.key_masks, by_block, strict=True):
        if kv_heads != heads:
            k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
        mask = _mask(block, key_mask, causal, sliding_window, q)
        outputs.append(_attend(q, k, v, mask, causal, scaling, softcap).reshape(-1, v.shape[-1]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (P h, d)
    return _Ungroup.apply(flat, packing.by_head(heads)).view(1, tokens, heads, -1), None


def regrouped(states: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Bring (1, h, T, d) into the blocks' (n, h, L, d)."""
    heads, width = states.shape[1], states.shape[3]
    rows = _Regroup.apply(states.transpose(1, 2).reshape(-1, width), packing.by_head(heads))  # (P h, d)
    shapes = [(len(block.lengths), heads, block.longest, width) for block in packing.blocks]
    pieces = rows.split([math.prod(shape[:3]) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _mask(
    block: Block, key_mask: torch.Tensor | None, causal: bool, window: int | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Return what is added to the scores beyond plain causality, broadcastable to (n, h, L, L); None if nothing."""
    # Padding comes after a sequence's end, where a causal token does not look.
    mask = None if causal or key_mask is None else key_mask.to(like.dtype)
    if window is not None and window < block.longest:
        place = torch.arange(block.longest, device=like.device)
        back = place[:, None] - place  # (L, L)
        hidden = (back >= window) | (back < 0 if causal else back <= -window)
        mask = (0 if mask is None else mask) + torch.zeros_like(back, dtype=like.dtype).masked_fill(
            hidden, hide(like.dtype)
        )
    return mask


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return softmax(q k^T) v of one block, (n, h, L, d)."""
    count, heads, length, _ = q.shape
    if softcap is None and (length >= LONG or q.device.type != "cpu"):
        return scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None, scale=scaling)
    # Short sequences: a batched product of contiguous matrices takes a CPU a third of the time that its flash kernel
    # does.
    flat_q, flat_k, flat_v = (tensor.flatten(0, 1) for tensor in (q, k, v))  # (n h, L, d)
    scores = torch.bmm(flat_q * scaling, flat_k.transpose(1, 2))  # (n h, L, L)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal and mask is None:
        mask = torch.full((length, length), hide(q.dtype), dtype=q.dtype, device=q.device).triu(1)
    if mask is not None:
        scores.view(count, heads, length, length).add_(mask)
    return torch.bmm(scores.softmax(-1), flat_v).view(count, heads, length, -1)


class _Regroup(torch.autograd.Function):
    """Rows in token order to head order; every token's gradient comes from its one place."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: HeadIndex) -> torch.Tensor:
        ctx.index = index
        return rows.index_select(0, index.source)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.contiguous().index_select(0, ctx.index.place), None


class _Ungroup(torch.autograd.Function):
    """Rows in head order back to token order; places without a token get no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: HeadIndex) -> torch.Tensor:
        ctx.index = index
        return rows.index_select(0, index.place)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        rows = grad.contiguous().index_select(0, ctx.index.source)
        if len(ctx.index.empty):
            rows.index_fill_(0, ctx.index.empty, 0.0)
        return rows, None
