"""Frozen layers that share an input; test_linear.py has every kind of layer."""

import bitsandbytes as bnb
import torch
from torch import nn

from rankwise.engine.fused.frozen import FrozenLayers


def test_kept_weights_give_what_dequantising_twice_gives() -> None:
    torch.manual_seed(0)
    layers = [
        bnb.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4") for _ in range(2)
    ]
    layers = [layer.to("cpu") for layer in layers]
    x, dys = torch.randn(6, 64), [torch.randn(6, 32) for _ in range(2)]
    once, twice = FrozenLayers(layers, keep_dequantized=True), FrozenLayers(layers)
    ys, kept = once.outputs(x)
    expected, nothing = twice.outputs(x)
    assert (len(kept), nothing) == (2, [])
    for y, other in zip(ys, expected, strict=True):
        torch.testing.assert_close(y, other)
    torch.testing.assert_close(once.input_gradient(kept, dys), twice.input_gradient([], dys))


def test_layers_that_are_not_4_bit_keep_nothing() -> None:
    frozen = FrozenLayers([nn.Linear(8, 4)], keep_dequantized=True)
    assert frozen.outputs(torch.randn(3, 8))[1] == []
