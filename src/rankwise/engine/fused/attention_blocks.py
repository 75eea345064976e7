"""Attention on any device: each packed sequence alone, sequences of similar length together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rankwise.engine.fused.packing import Block, Packing, masked_score
from rankwise.models.device import kind_of_device

# From this many tokens a CPU's flash attention, which stores no scores, is also the faster one.
FLASH_LENGTH = 192


@dataclass(frozen=True)
class Rule:
    """Which tokens a token attends to, and how its scores become probabilities."""

    causal: bool
    window: int | None  # tokens that a token sees, itself included
    scale: float
    softcap: float | None = None  # bound of the scores' absolute values (Gemma 2, section 2)
    sinks: torch.Tensor | None = None  # a score of each head that no token has, (h,) (gpt-oss)


def attend_in_blocks(
    query: torch.Tensor,  # (1, h, T, d)
    key: torch.Tensor,  # (1, h_kv, T, d)
    value: torch.Tensor,  # (1, h_kv, T, d)
    packing: Packing,
    rule: Rule,
) -> torch.Tensor:
    """Attend within each sequence, to (1, T, h, d)."""
    heads, tokens = query.shape[1:3]
    kv_heads = key.shape[1]
    masks = [
        _mask(block, key_mask, rule.causal, rule.window, query)
        for block, key_mask in zip(packing.blocks, packing.key_masks, strict=True)
    ]
    device = kind_of_device(query)
    plain = rule.softcap is None and rule.sinks is None
    if not plain or (device == "cpu" and packing.longest < FLASH_LENGTH):
        output: torch.Tensor = _Attend.apply(query, key, value, packing, masks, rule)
        return output
    by_block = zip(*(regrouped(tensor, packing) for tensor in (query, key, value)), strict=True)
    outputs = []
    for mask, (q, k, v) in zip(masks, by_block, strict=True):
        if kv_heads != heads:
            k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
        attended = scaled_dot_product_attention(
            q, k, v, mask, is_causal=rule.causal and mask is None, scale=rule.scale
        )
        outputs.append(attended.reshape(-1, v.shape[-1]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (P h, d)
    index = packing.by_head(heads)
    by_token = _Reorder.apply(flat, index.place, index.source, index.empty)  # (T h, d)
    return by_token.view(1, tokens, heads, -1)


def regrouped(states: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Bring (1, h, T, d) into the blocks' (n, h, L, d)."""
    heads, width = states.shape[1], states.shape[3]
    by_token = states.transpose(1, 2).reshape(-1, width)  # (T h, d)
    index = packing.by_head(heads)
    return _in_blocks(_Reorder.apply(by_token, index.source, index.place, None), packing)


def _in_blocks(rows: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """View rows in block order, (P h, d), as the blocks' (n, h, L, d)."""
    heads = len(rows) // packing.places
    shapes = [(block.count, heads, block.longest, rows.shape[1]) for block in packing.blocks]
    pieces = rows.split([math.prod(shape[:3]) for shape in shapes]) if len(shapes) > 1 else [rows]
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _mask(
    block: Block,
    key_mask: torch.Tensor | None,
    causal: bool,
    window: int | None,
    like: torch.Tensor,
) -> torch.Tensor | None:
    """Return the mask to add to the scores beyond plain causality, to fit (n, h, L, L), if any."""
    # Padding follows the end of a sequence, to which a causal token does not attend.
    mask = None if causal or key_mask is None else key_mask.to(like.dtype)
    if window is not None and window < block.longest:
        place = torch.arange(block.longest, device=like.device)
        distance = place[:, None] - place  # (L, L), how far back the key is
        hidden = (distance >= window) | (distance < 0 if causal else distance <= -window)
        band = torch.zeros_like(distance, dtype=like.dtype)
        band.masked_fill_(hidden, masked_score(like.dtype))
        return band if mask is None else mask + band
    return mask


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v within each sequence, as products of contiguous matrices, block by block.

    For short sequences it takes a CPU a third of the time of its flash kernel. Each product writes
    into its place in a block, where autograd would copy. All heads with one key form one matrix.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        packing: Packing,
        masks: list[torch.Tensor | None],
        rule: Rule,
    ) -> torch.Tensor:
        """Attend: (1, h, T, d) and twice (1, h_kv, T, d) to (1, T, h, d)."""
        heads, tokens = query.shape[1:3]
        # (P h, d), (P h_kv, d), (P h_kv, d)
        q, k, v = (_grouped(tensor.transpose(1, 2), packing) for tensor in (query, key, value))
        out = v.new_empty(len(q), v.shape[-1])
        probabilities, tanh_scores = [], []
        by_block = _matrices(packing, key.shape[1], q, k, v, out)
        # With g = h / h_kv heads to a key: (n h_kv, g L, d), twice (n h_kv, L, d), (n h_kv, g L, d)
        for block, mask, matrices in zip(packing.blocks, masks, by_block, strict=True):
            q_b, k_b, v_b, out_b = matrices
            length = block.longest
            if rule.causal and mask is None:
                mask = q.new_full((length, length), masked_score(q.dtype)).triu(1)
            scores = q.new_empty(*q_b.shape[:2], length)  # (n h_kv, g L, L)
            scores.baddbmm_(q_b, k_b.transpose(1, 2), beta=0.0, alpha=rule.scale)
            if rule.softcap is not None:
                tanh_scores.append(scores.div_(rule.softcap).tanh_().clone())
                scores.mul_(rule.softcap)
            if mask is not None:
                scores.view(-1, heads, length, length).add_(mask)
            probabilities.append(_probabilities(scores, heads, rule.sinks).to(v.dtype))
            torch.bmm(probabilities[-1], v_b, out=out_b)
        ctx.save_for_backward(q, k, v, *probabilities, *tanh_scores)
        ctx.packing, ctx.kv_heads, ctx.scaling = packing, key.shape[1], rule.scale
        return out.index_select(0, packing.by_head(heads).place).view(1, tokens, heads, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value.

        With P the probabilities and C = P V: dV = P^T dC, dP = dC V^T, and the scores get
        dS = P * (dP - rowsum(dP * P)), times ``1 - tanh^2`` under a softcap; dQ = s dS K and
        dK = s dS^T Q. Sinks change P alone: no value belongs to them.
        """
        packing, kv_heads = ctx.packing, ctx.kv_heads
        q, k, v, *rest = ctx.saved_tensors
        probabilities, tanh_scores = rest[: len(packing.blocks)], rest[len(packing.blocks) :]
        heads = grad.shape[2]
        dout = _grouped(grad, packing)  # (P h, d)
        dout.index_fill_(0, packing.by_head(heads).empty, 0.0)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        by_block = _matrices(packing, kv_heads, q, k, v, dout, dq, dk, dv)
        for place, (q_b, k_b, v_b, dout_b, dq_b, dk_b, dv_b) in enumerate(by_block):
            p = probabilities[place]
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
        return *grads, None, None, None


def _probabilities(scores: torch.Tensor, heads: int, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return the softmax of scores, (n h_kv, g L, L), with each head's sink among them, if any."""
    probabilities = scores.softmax(-1)
    if sinks is None:
        return probabilities
    length = scores.shape[-1]
    total = scores.logsumexp(-1, keepdim=True).view(-1, heads, length, 1)
    share = torch.sigmoid(total - sinks.view(heads, 1, 1).to(total.dtype))  # beside the sink
    probabilities.view(-1, heads, length, length).mul_(share)
    return probabilities


def _grouped(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Bring (1, T, h, d) into block order, head by head, (P h, d)."""
    index = packing.by_head(states.shape[2])
    return states.reshape(-1, states.shape[-1]).index_select(0, index.source)


def _matrices(
    packing: Packing, kv_heads: int, *tensors: torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """View each (P h, d) as (n h_kv, g L, d), one matrix for the heads of a key, block by block."""
    for pieces in zip(*(_in_blocks(rows, packing) for rows in tensors), strict=True):
        yield [piece.view(len(piece) * kv_heads, -1, piece.shape[-1]) for piece in pieces]


class _Reorder(torch.autograd.Function):
    """Copy rows by an index; their gradients return by its inverse, and are 0 for `empty` rows."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        index: torch.Tensor,
        inverse: torch.Tensor,
        empty: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.inverse, ctx.empty = inverse, empty
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        rows = grad.contiguous().index_select(0, ctx.inverse)
        if ctx.empty is not None and len(ctx.empty):
            rows.index_fill_(0, ctx.empty, 0.0)
        return rows, None, None, None
