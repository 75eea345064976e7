"""Frozen linear layers with one input: their outputs, and the gradient of the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from rankwise.models.compat import dequantize_bnb, quantized_bits
from rankwise.models.quantization import is_quantized


def is_fusable(layer: nn.Module) -> bool:
    """Whether a linear layer is of a known kind; bitsandbytes' layers are ``nn.Linear`` too."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def frozen_weight(base: Any) -> torch.Tensor:
    """Return a layer's weight in full precision, (d_out, d_in)."""
    if is_quantized(base):
        return dequantize_bnb(base)
    weight: torch.Tensor = base.weight
    return weight.t() if type(base).__name__ == "Conv1D" else weight


@dataclass(frozen=True)
class FrozenLayers:
    """Frozen layers that share an input.

    Attributes:
        layers: the layers, in the order of their outputs.
        keep_dequantized: let 4-bit layers keep the weight of the forward pass for the backward
            pass. 8-bit layers multiply in 8 bits, so there is none to keep.
    """

    layers: Sequence[nn.Module]
    keep_dequantized: bool = False

    def outputs(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return each layer's output, and the weights to keep for `input_gradient`, if any."""
        layers: list[Any] = list(self.layers)
        if not (self.keep_dequantized and all(quantized_bits(layer) == 4 for layer in layers)):
            return [layer(x) for layer in layers], []
        weights = [frozen_weight(layer).to(x.dtype) for layer in layers]
        biases = [None if layer.bias is None else layer.bias.to(x.dtype) for layer in layers]
        pairs = zip(weights, biases, strict=True)
        return [linear(x, weight, bias) for weight, bias in pairs], weights

    def input_gradient(
        self, kept: Sequence[torch.Tensor], dys: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the gradient of the shared input, (T, d_in), from those of the outputs."""
        dx = None
        for place, dy in enumerate(dys):
            weight = kept[place] if kept else frozen_weight(self.layers[place]).to(dy.dtype)
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        assert dx is not None
        return dx
