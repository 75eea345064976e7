"""Packed attention against the plain formula, one sequence at a time, in float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.engine.fused.attention import FLASH_LENGTH, packed_attention
from rankwise.engine.fused.packing import Packing, packed

LENGTHS = [3, 11, 5, 5, 1, 12, 7, 30]


def plain(
    q: Any, k: Any, v: Any, scaling: float, causal: bool, window: int | None, softcap: float | None
) -> Any:
    """Return softmax(q k^T) v, (h, L, d), by the formula."""
    k, v = (tensor.repeat_interleave(q.shape[0] // tensor.shape[0], 0) for tensor in (k, v))
    scores = q @ k.transpose(1, 2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    hidden = torch.zeros_like(back, dtype=torch.bool)
    if causal:
        hidden |= back < 0
    if window is not None:
        hidden |= back.abs() >= window
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [FLASH_LENGTH + 3, 4, FLASH_LENGTH + 8]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_output_and_gradients_match_the_formula(
    lengths: list[int], causal: bool, window: int | None, softcap: float | None
) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (
        torch.randn(1, heads, tokens, 8, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    with packed(Packing([[0] * length for length in lengths])):
        module: Any = SimpleNamespace(is_causal=causal)
        ours, _ = packed_attention(
            module, q, k, v, None, 0.3, sliding_window=window, softcap=softcap
        )
    pieces = zip(*(tensor[0].split(lengths, 1) for tensor in (q, k, v)), strict=True)
    expected = torch.cat(
        [plain(*piece, 0.3, causal, window, softcap) for piece in pieces], 1
    ).transpose(0, 1)[None]
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    direction = torch.randn_like(expected)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((ours * direction).sum(), (q, k, v)),
        torch.autograd.grad((expected * direction).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0.0, atol=1e-11)
