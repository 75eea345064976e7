"""Plain loops: for functions of PyTorch that a CPU lacks or has in fp32 alone, and attention."""

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rankwise.engine.fused.attention_blocks import Rule

ALIGNED = 8  # entries: strides of grouped products take a multiple of 16 bytes in half precision


def grouped_mm(left: Any, right: Any, *, offs: Any) -> Any:
    """Multiply group by group, and refuse what CUDA's kernel would refuse."""
    assert offs.dtype == torch.int32
    for matrix in (left, right):
        strides = matrix.stride()[-2:]
        assert 1 in strides
        assert max(strides) % ALIGNED == 0
    bounds = [0, *offs.tolist()]
    if right.ndim == 2:
        # CUDA's kernel lets groups of the inner dimension start anywhere in this layout alone.
        assert left.stride(0) == 1
        assert right.stride(1) == 1
        pairs = [(left[:, start:stop], right[start:stop]) for start, stop in pairwise(bounds)]
        return torch.stack([one @ other for one, other in pairs])
    pieces = [left[start:stop] for start, stop in pairwise(bounds)]
    return torch.cat([one @ other for one, other in zip(pieces, right, strict=True)])


def varlen_attn(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """Attend sequence by sequence, as PyTorch's documentation of the function says."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    bounds = cu_seq_q.tolist()
    assert cu_seq_k.tolist() == bounds
    assert max_q == max_k == max(stop - start for start, stop in pairwise(bounds))
    assert enable_gqa or query.shape[1] == key.shape[1]
    outputs = []
    for start, stop in pairwise(bounds):
        q, k, v = (tensor[start:stop].transpose(0, 1) for tensor in (query, key, value))
        back = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = torch.ones_like(back, dtype=torch.bool)
        if window_size[0] >= 0:
            seen &= back <= window_size[0]
        if window_size[1] >= 0:
            seen &= -back <= window_size[1]
        attended = scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)
        outputs.append(attended.transpose(0, 1))
    return torch.cat(outputs)


def by_formula(query: Any, key: Any, value: Any, lengths: list[int], rule: Rule) -> Any:
    """Return attention within each sequence, (1, h, T, d) to (1, T, h, d), by the formula."""
    pieces = zip(*(tensor[0].split(lengths, 1) for tensor in (query, key, value)), strict=True)
    return torch.cat([_one_sequence(q, k, v, rule) for q, k, v in pieces], 1).transpose(0, 1)[None]


def _one_sequence(q: Any, k: Any, v: Any, rule: Rule) -> Any:
    """Return softmax(q k^T) v, (h, L, d)."""
    k, v = (tensor.repeat_interleave(q.shape[0] // tensor.shape[0], 0) for tensor in (k, v))
    scores = q @ k.transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    hidden = torch.zeros_like(back, dtype=torch.bool)
    if rule.causal:
        hidden |= back < 0
    if rule.window is not None:
        hidden |= back.abs() >= rule.window
    scores = scores.masked_fill(hidden, -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v
