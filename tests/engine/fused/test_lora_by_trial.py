"""The loop over trials beyond its values, which test_linear.py compares with PEFT."""

from typing import Any

import pytest
import torch
from torch import nn

from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.linear import fused_layers
from rankwise.engine.fused.segments import LoraSettings


@pytest.mark.parametrize("asked", [True, False])
def test_the_input_gets_a_gradient_only_if_it_is_asked_for(asked: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).requires_grad_(False)
    a, bt = torch.randn(2, 6), torch.randn(2, 4)
    factors = LoraFactors(a, bt, torch.zeros_like(a), torch.zeros_like(bt), 2.0)
    x = torch.randn(5, 6, requires_grad=asked)
    with fused_layers(model, ["0"], LoraSettings()) as segments:
        adapters: list[Any] = [{"0": factors}]
        segments.assign(adapters, [5])
        model(x).sum().backward()
    assert (x.grad is not None) == asked
    expected = 2.0 * (bt @ torch.ones(4))[:, None] * x.detach().sum(0)
    torch.testing.assert_close(factors.a_grad, expected)
