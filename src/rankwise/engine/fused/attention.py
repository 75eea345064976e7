"""Attention over packed sequences: each sequence alone, sequences of similar length together."""

import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rankwise.engine.fused.packing import (
    Block,
    HeadIndex,
    Packing,
    current_packing,
    masked_score,
)

NAME = "rankwise_packed"  # key in transformers' registry of attention functions
# From this many tokens a CPU's flash attention, which stores no scores, is also the faster one.
FLASH_LENGTH = 192


def register() -> None:
    """Add packed attention to transformers' registry.

    No mask function is registered with it, so models build no mask (transformers, masking_utils).
    """
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
    """Attend within each sequence of the current packing.

    The parameters are those of transformers' attention functions; the packing comes from the
    ``with`` block of `rankwise.engine.fused.packing.packed` around the pass.

    Args:
        module: the model's attention layer, whose ``is_causal`` is the default of the argument.
        query: (1, h, T, d).
        key: (1, h_kv, T, d).
        value: (1, h_kv, T, d).
        attention_mask: ignored; the packing determines which tokens attend to each other.
        scaling: factor of the scores, ``d ** -0.5`` by default.
        is_causal: whether a token attends only to itself and earlier ones.
        sliding_window: number of tokens, itself included, to which a token attends.
        softcap: bound of the scores' absolute values (Gemma 2, section 2).

    Returns:
        (1, T, h, d), and no weights.
    """
    packing = current_packing()
    heads, tokens, width = query.shape[1:]
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    masks = [
        _mask(block, key_mask, causal, sliding_window, query)
        for block, key_mask in zip(packing.blocks, packing.key_masks, strict=True)
    ]
    device = query.device.type
    if softcap is not None or (device == "cpu" and packing.blocks[-1].longest < FLASH_LENGTH):
        if torch.is_autocast_enabled(device):  # autocast does not reach products with out=
            dtype = torch.get_autocast_dtype(device)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return _Attend.apply(query, key, value, packing, masks, causal, scale, softcap), None
    by_block = zip(*(regrouped(tensor, packing) for tensor in (query, key, value)), strict=True)
    outputs = []
    for mask, (q, k, v) in zip(masks, by_block, strict=True):
        if kv_heads != heads:
            k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
        attended = scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scale
        )
        outputs.append(attended.reshape(-1, v.shape[-1]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (P h, d)
    return _Ungroup.apply(flat, packing.by_head(heads)).view(1, tokens, heads, -1), None


def regrouped(states: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Bring (1, h, T, d) into the blocks' (n, h, L, d)."""
    heads, width = states.shape[1], states.shape[3]
    by_token = states.transpose(1, 2).reshape(-1, width)  # (T h, d)
    return _in_blocks(_Regroup.apply(by_token, packing.by_head(heads)), packing)


def _in_blocks(rows: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """View rows in block order, (P h, d), as the blocks' (n, h, L, d)."""
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
    """Return the mask to add to the scores beyond plain causality, broadcastable to (n, h, L, L).

    None if nothing needs to be added.
    """
    # Padding follows the end of a sequence, to which a causal token does not attend.
    mask = None if causal or key_mask is None else key_mask.to(like.dtype)
    if window is not None and window < block.longest:
        place = torch.arange(block.longest, device=like.device)
        distance = place[:, None] - place  # (L, L), how far back the key is
        hidden = (distance >= window) | (distance < 0 if causal else distance <= -window)
        mask = (0 if mask is None else mask) + torch.zeros_like(
            distance, dtype=like.dtype
        ).masked_fill(hidden, masked_score(like.dtype))
    return mask


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v within each sequence, as products of contiguous matrices, block by block.

    For short sequences a CPU needs a third of the time of its flash kernel. Rows go straight from
    token order into blocks and back, and each product writes into its place in a block, where
    autograd would copy. The queries of all heads that share a key form one matrix.
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
        """Attend: (1, h, T, d) and twice (1, h_kv, T, d) to (1, T, h, d)."""
        heads, tokens = query.shape[1:3]
        # (P h, d), (P h_kv, d), (P h_kv, d)
        q, k, v = (_grouped(tensor.transpose(1, 2), packing) for tensor in (query, key, value))
        out = v.new_empty(len(q), v.shape[-1])
        probabilities, tanh_scores = [], []
        by_block = zip(
            *(_matrices(rows, key.shape[1], packing) for rows in (q, k, v, out)), strict=True
        )
        # With g = h / h_kv heads to a key: (n h_kv, g L, d), twice (n h_kv, L, d), (n h_kv, g L, d)
        for block, mask, (q_b, k_b, v_b, out_b) in zip(
            packing.blocks, masks, by_block, strict=True
        ):
            length = block.longest
            if causal and mask is None:
                mask = torch.full(
                    (length, length), masked_score(q.dtype), dtype=q.dtype, device=q.device
                ).triu(1)
            scores = q.new_empty(*q_b.shape[:2], length)  # (n h_kv, g L, L)
            scores.baddbmm_(q_b, k_b.transpose(1, 2), beta=0.0, alpha=scaling)
            if softcap is not None:
                tanh_scores.append(scores.div_(softcap).tanh_().clone())
                scores.mul_(softcap)
            if mask is not None:
                scores.view(-1, heads, length, length).add_(mask)
            probabilities.append(scores.softmax(-1).to(v.dtype))
            torch.bmm(probabilities[-1], v_b, out=out_b)
        ctx.save_for_backward(q, k, v, *probabilities, *tanh_scores)
        ctx.packing, ctx.kv_heads, ctx.scaling = packing, key.shape[1], scaling
        return out.index_select(0, packing.by_head(heads).place).view(1, tokens, heads, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value.

        With P the probabilities and C = P V: dV = P^T dC, dP = dC V^T, and the scores get
        dS = P * (dP - rowsum(dP * P)), times ``1 - tanh^2`` under a softcap; dQ = s dS K and
        dK = s dS^T Q.
        """
        packing, kv_heads = ctx.packing, ctx.kv_heads
        q, k, v, *rest = ctx.saved_tensors
        probabilities, tanh_scores = rest[: len(packing.blocks)], rest[len(packing.blocks) :]
        heads = grad.shape[2]
        dout = _grouped(grad, packing)  # (P h, d)
        dout.index_fill_(0, packing.by_head(heads).empty, 0.0)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        by_block = zip(
            *(_matrices(rows, kv_heads, packing) for rows in (q, k, v, dout, dq, dk, dv)),
            strict=True,
        )
        for place, (p, (q_b, k_b, v_b, dout_b, dq_b, dk_b, dv_b)) in enumerate(
            zip(probabilities, by_block, strict=True)
        ):
            torch.bmm(p.transpose(1, 2), dout_b, out=dv_b)
            dscores = torch.bmm(dout_b, v_b.transpose(1, 2))  # dP so far, (n h_kv, g L, L)
            dscores.sub_((dscores * p).sum(-1, keepdim=True)).mul_(p)
            if tanh_scores:
                dscores.mul_(1 - tanh_scores[place] ** 2)
            dq_b.baddbmm_(dscores, k_b, beta=0.0, alpha=ctx.scaling)
            dk_b.baddbmm_(dscores.transpose(1, 2), q_b, beta=0.0, alpha=ctx.scaling)
        grads = [
            rows.index_select(0, packing.by_head(count).place)
            .view(1, packing.tokens, count, -1)
            .transpose(1, 2)
            for rows, count in ((dq, heads), (dk, kv_heads), (dv, kv_heads))
        ]
        return *grads, None, None, None, None, None


def _grouped(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Bring (1, T, h, d) into block order, head by head, (P h, d)."""
    index = packing.by_head(states.shape[2])
    return states.reshape(-1, states.shape[-1]).index_select(0, index.source)


def _matrices(rows: torch.Tensor, kv_heads: int, packing: Packing) -> list[torch.Tensor]:
    """View (P h, d) as each block's matrices, one for a key's heads, (n h_kv, g L, d)."""
    return [
        piece.view(len(piece) * kv_heads, -1, piece.shape[-1])
        for piece in _in_blocks(rows, packing)
    ]


class _Regroup(torch.autograd.Function):
    """Copy rows from token order to block order; a token's gradient comes from its one place."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, index: HeadIndex) -> torch.Tensor:
        ctx.index = index
        return rows.index_select(0, index.source)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.contiguous().index_select(0, ctx.index.place), None


class _Ungroup(torch.autograd.Function):
    """Copy rows from block order back to token order; places without a token get no gradient."""

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
