"""Attention over a packing: every sequence alone, heads and sequences of like length together."""

import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rankwise.engine.fused.packing import Block, HeadIndex, Packing, current_packing, hide

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
    """Attend within each sequence of the current packing (see `rankwise.engine.fused.packing.packed`).

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
    masks = [
        _mask(block, key_mask, causal, sliding_window, query)
        for block, key_mask in zip(packing.blocks, packing.key_masks, strict=True)
    ]
    if softcap is not None or (query.device.type == "cpu" and packing.blocks[-1].longest < LONG):
        if torch.is_autocast_enabled(
            query.device.type
        ):  # products that write to their place do not cast by themselves
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return _Attend.apply(query, key, value, packing, masks, causal, scaling, softcap), None
    by_block = zip(*(regrouped(tensor, packing) for tensor in (query, key, value)), strict=True)
    outputs = []
    for mask, (q, k, v) in zip(masks, by_block, strict=True):
        if kv_heads != heads:
            k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
        own = scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scaling
        )
        outputs.append(own.reshape(-1, v.shape[-1]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (P h, d)
    return _Ungroup.apply(flat, packing.by_head(heads)).view(1, tokens, heads, -1), None


def regrouped(states: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Bring (1, h, T, d) into the blocks' (n, h, L, d)."""
    heads, width = states.shape[1], states.shape[3]
    rows = _Regroup.apply(
        states.transpose(1, 2).reshape(-1, width), packing.by_head(heads)
    )  # (P h, d)
    return _in_blocks(rows, packing)


def _in_blocks(rows: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Show rows in the blocks' order, (P h, d), as the blocks' (n, h, L, d)."""
    heads = len(rows) // packing.places
    shapes = [(len(block.lengths), heads, block.longest, rows.shape[1]) for block in packing.blocks]
    pieces = rows.split([math.prod(shape[:3]) for shape in shapes]) if len(shapes) > 1 else [rows]
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _mask(
    block: Block,
    key_mask: torch.Tensor | None,
    causal: bool,
    window: int | None,
    like: torch.Tensor,
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


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v within each sequence, by products of contiguous matrices, block by block.

    For short sequences this takes a CPU a third of the time of its flash kernel. Rows go straight from token order into
    blocks and back, and every product writes to its place in a block, where autograd would copy. The queries of all
    heads that share a key are one matrix.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        packing: Packing,
        masks: list[torch.Tensor | None],
        causal: bool,
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attend, (1, h, T, d) and twice (1, h_kv, T, d) to (1, T, h, d)."""
        heads, tokens = query.shape[1:3]
        q, k, v = (
            _grouped(tensor.transpose(1, 2), packing) for tensor in (query, key, value)
        )  # (P h, d), (P h_kv, d)
        out = v.new_empty(len(q), v.shape[-1])
        probabilities, bends = [], []
        in_blocks = zip(
            *(_matrices(rows, key.shape[1], packing) for rows in (q, k, v, out)), strict=True
        )
        for block, mask, (own_q, own_k, own_v, own_out) in zip(
            packing.blocks, masks, in_blocks, strict=True
        ):
            # (n h_kv, g L, d) with g = h / h_kv heads to a key, twice (n h_kv, L, d), (n h_kv, g L, d)
            length = block.longest
            if causal and mask is None:
                mask = torch.full(
                    (length, length), hide(q.dtype), dtype=q.dtype, device=q.device
                ).triu(1)
            scores = q.new_empty(*own_q.shape[:2], length)  # (n h_kv, g L, L)
            scores.baddbmm_(own_q, own_k.transpose(1, 2), beta=0.0, alpha=scaling)
            if softcap is not None:
                bends.append(scores.div_(softcap).tanh_().clone())
                scores.mul_(softcap)
            if mask is not None:
                scores.view(-1, heads, length, length).add_(mask)
            probabilities.append(scores.softmax(-1).to(v.dtype))
            torch.bmm(probabilities[-1], own_v, out=own_out)
        ctx.save_for_backward(q, k, v, *probabilities, *bends)
        ctx.packing, ctx.kv_heads, ctx.scaling = packing, key.shape[1], scaling
        return out.index_select(0, packing.by_head(heads).place).view(1, tokens, heads, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        packing, kv_heads = ctx.packing, ctx.kv_heads
        q, k, v, *rest = ctx.saved_tensors
        probabilities, bends = rest[: len(packing.blocks)], rest[len(packing.blocks) :]
        heads = grad.shape[2]
        dout = _grouped(grad, packing)  # (P h, d)
        dout.index_fill_(0, packing.by_head(heads).empty, 0.0)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        in_blocks = zip(
            *(_matrices(rows, kv_heads, packing) for rows in (q, k, v, dout, dq, dk, dv)),
            strict=True,
        )
        for place, (p, (own_q, own_k, own_v, own_dout, own_dq, own_dk, own_dv)) in enumerate(
            zip(probabilities, in_blocks, strict=True)
        ):
            torch.bmm(p.transpose(1, 2), own_dout, out=own_dv)
            dscores = torch.bmm(
                own_dout, own_v.transpose(1, 2)
            )  # (n h_kv, g L, L), of the probabilities so far
            dscores.sub_((dscores * p).sum(-1, keepdim=True)).mul_(p)
            if bends:
                dscores.mul_(1 - bends[place] ** 2)
            own_dq.baddbmm_(dscores, own_k, beta=0.0, alpha=ctx.scaling)
            own_dk.baddbmm_(dscores.transpose(1, 2), own_q, beta=0.0, alpha=ctx.scaling)
        grads = [
            rows.index_select(0, packing.by_head(count).place)
            .view(1, packing.tokens, count, -1)
            .transpose(1, 2)
            for rows, count in ((dq, heads), (dk, kv_heads), (dv, kv_heads))
        ]
        return *grads, None, None, None, None, None


def _grouped(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Bring (1, T, h, d) into the blocks' order, head by head, (P h, d)."""
    return states.reshape(-1, states.shape[-1]).index_select(
        0, packing.by_head(states.shape[2]).source
    )


def _matrices(rows: torch.Tensor, kv_heads: int, packing: Packing) -> list[torch.Tensor]:
    """Show (P h, d) as each block's matrices of a key's heads, (n h_kv, g L, d)."""
    return [
        piece.view(len(piece) * kv_heads, -1, piece.shape[-1])
        for piece in _in_blocks(rows, packing)
    ]


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
