"""Attention in blocks against the plain formula, one sequence at a time, in float64."""

import pytest
import torch

from rankwise.engine.fused.attention_blocks import FLASH_LENGTH, Rule, attend_in_blocks
from rankwise.engine.fused.packing import Packing
from tests.engine.fused.stand_ins import by_formula

LENGTHS = [3, 11, 5, 5, 1, 12, 7, 30]


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [FLASH_LENGTH + 3, 4, FLASH_LENGTH + 8]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_output_and_gradients_match_the_formula(
    lengths: list[int], causal: bool, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (
        torch.randn(1, heads, tokens, 8, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    sinks = torch.randn(4, dtype=torch.float64) if with_sinks else None
    rule = Rule(causal, window, 0.3, softcap, sinks)
    ours = attend_in_blocks(q, k, v, Packing([[0] * length for length in lengths]), rule)
    expected = by_formula(q, k, v, lengths, rule)
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    direction = torch.randn_like(expected)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((ours * direction).sum(), (q, k, v)),
        torch.autograd.grad((expected * direction).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0.0, atol=1e-11)
