"""Frozen linear layers with the LoRA adapters of several trials, each on its own token rows.

A packed batch is one matrix of T token rows. Trial k owns the T_k rows of its segment::

     x (T, d_in)                                     y (T, d_out)
    +------------+                                  +------------+
    | x_0, T_0   |--- low_0 = s_0 x_0 A_0^T ------->| y_0 += low_0 B_0^T
    +------------+                                  +------------+
    | x_1, T_1   |--- low_1 = s_1 x_1 A_1^T ------->| y_1 += low_1 B_1^T
    +------------+                                  +------------+
          |                                                ^
          +---- frozen, all T rows in one product: x W^T + b

    backward, from dy:    dx           = dy W                   all rows in one product
                          B_k^T.grad  += low_k^T dy_k           into the trial's buffer
                          dlow_k       = dy_k B_k
                          A_k.grad    += s_k dlow_k^T x_k       into the trial's buffer
                          dx_k        += dlow_k (s_k A_k)

Autograd would copy each slice and make a new tensor for each gradient. Here every product adds to
the place where its result belongs. W gets no gradient. Layers that share an input, such as query,
key and value, run together: their A's are stacked, so that three products with a thin matrix,
whose overhead on a CPU exceeds their arithmetic, become one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rankwise.engine.fused.segments import LoraFactors, Segments
from rankwise.models.compat import dequantize_bnb
from rankwise.models.quantization import is_quantized

# Sibling layers to which modelling code passes the same input, in the order in which it calls them.
SHARED_INPUT = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)


class FusedLinear(nn.Module):
    """Replaces a linear layer: frozen layer on all rows, each trial's factors on its segment."""

    def __init__(self, base: nn.Module, name: str, segments: Segments) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.segments = segments
        # The layers to compute when this one is called: itself, then siblings with the same input.
        self.group: Sequence[FusedLinear] = [self]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b + s (x A^T) B^T``, (..., d_in) to (..., d_out)."""
        segments = self.segments
        computed_from, output = segments.sibling_outputs.pop(self.name, (None, None))
        if computed_from is x and output is not None:
            return output
        bases = [layer.base for layer in self.group]
        factors = [[adapter[layer.name] for layer in self.group] for adapter in segments.adapters]
        ys = _SegmentedLora.apply(x, segments.grad_anchor, bases, factors, segments.bounds)
        for layer, y in zip(self.group[1:], ys[1:], strict=True):
            segments.sibling_outputs[layer.name] = (x, y)
        first: torch.Tensor = ys[0]
        return first


class _SegmentedLora(torch.autograd.Function):
    """Sibling layers with one input; gradients of the factors go straight to their buffers.

    Under autocast the products are in the lower precision, and the buffers keep the precision of
    the factors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        grad_anchor: torch.Tensor,
        bases: list[nn.Module],
        factors: list[list[LoraFactors]],
        bounds: Sequence[int],
    ) -> tuple[torch.Tensor, ...]:
        """Return each layer's output, (..., d_out), from the shared input x, (..., d_in)."""
        ys = [base(x) for base in bases]  # (..., d_out)
        dtype = ys[0].dtype
        if torch.is_autocast_enabled(x.device.type):
            # bitsandbytes' layers return the precision of x, which is fp32 after a norm layer.
            dtype = torch.get_autocast_dtype(x.device.type)
            ys = [y.to(dtype) for y in ys]
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        x = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, d_in)
        outputs = [_by_segment(y.view(-1, y.shape[-1]), bounds) for y in ys]
        lows = []
        for layers, x_k, *ys_k in zip(factors, _by_segment(x, bounds), *outputs, strict=False):
            low = x_k @ _stacked_a(layers).to(dtype).t()  # (T_k, R), R = sum of the layers' r
            lows.append(low)
            for layer, layer_low, y_k in zip(layers, _by_layer(low, layers, 1), ys_k, strict=True):
                y_k.addmm_(layer_low, layer.bt.to(dtype))
        ctx.save_for_backward(x, *lows)
        ctx.bases, ctx.factors, ctx.bounds = bases, factors, bounds
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradient of x, and add those of the factors to their buffers."""
        x, *lows = ctx.saved_tensors  # (T, d_in), (T_k, R) for each trial
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys]  # (T, d_out)
        dx = None
        if ctx.needs_input_grad[0]:
            for base, dy in zip(ctx.bases, flat, strict=True):
                weight = frozen_weight(base).to(dy.dtype)
                dx = dy @ weight if dx is None else dx.addmm_(dy, weight)  # (T, d_in)
        inputs = _by_segment(x, ctx.bounds)
        outputs = [_by_segment(dy, ctx.bounds) for dy in flat]
        input_grads = [None] * len(inputs) if dx is None else _by_segment(dx, ctx.bounds)
        by_trial = zip(ctx.factors, lows, inputs, input_grads, *outputs, strict=False)
        for layers, low, x_k, dx_k, *dys_k in by_trial:
            dlows = []
            layer_lows = _by_layer(low, layers, 1)
            for layer, layer_low, dy_k in zip(layers, layer_lows, dys_k, strict=True):
                dlows.append(dy_k @ layer.bt.to(dy_k.dtype).t())  # (T_k, r)
                if dy_k.dtype == layer.bt_grad.dtype:
                    layer.bt_grad.addmm_(layer_low.t(), dy_k)
                else:
                    layer.bt_grad.add_(layer_low.t() @ dy_k)
            dlow = _joined(dlows, 1)  # (T_k, R)
            da = dlow.t() @ x_k  # (R, d_in)
            for layer, layer_da in zip(layers, _by_layer(da, layers, 0), strict=True):
                layer.a_grad.add_(layer_da, alpha=layer.scaling)
            if dx_k is not None:
                dx_k.addmm_(dlow, _stacked_a(layers).to(dlow.dtype))
        input_grad = None if dx is None else dx.view(ctx.input_shape).to(ctx.input_dtype)
        return input_grad, None, None, None, None


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _stacked_a(layers: Sequence[LoraFactors]) -> torch.Tensor:
    """Return ``scaling * A`` of all layers below one another, (R, d_in)."""
    scaled = [layer.a if layer.scaling == 1.0 else layer.a * layer.scaling for layer in layers]
    return _joined(scaled, 0)


def _by_layer(
    stacked: torch.Tensor, layers: Sequence[LoraFactors], dim: int
) -> Sequence[torch.Tensor]:
    """Split R rows or columns into views, one for each layer."""
    if len(layers) == 1:
        return (stacked,)
    return stacked.split([layer.a.shape[0] for layer in layers], dim)


def _by_segment(rows: torch.Tensor, bounds: Sequence[int]) -> Sequence[torch.Tensor]:
    """Split (T, ...) into views, one for each trial."""
    if len(bounds) == 2:
        return (rows,)
    return [rows[start:stop] for start, stop in pairwise(bounds)]


def is_fusable(layer: nn.Module) -> bool:
    """Whether `FusedLinear` can replace a layer; bitsandbytes' layers are ``nn.Linear`` too."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def frozen_weight(base: Any) -> torch.Tensor:
    """Return a layer's weight in full precision, (d_out, d_in)."""
    if is_quantized(base):
        return dequantize_bnb(base)
    weight: torch.Tensor = base.weight
    return weight.t() if type(base).__name__ == "Conv1D" else weight


@contextmanager
def fused_layers(model: nn.Module, names: Sequence[str]) -> Iterator[Segments]:
    """Replace the named layers by `FusedLinear` until the end of the ``with`` block."""
    segments = Segments()
    originals = {name: model.get_submodule(name) for name in names}
    layers = {name: FusedLinear(module, name, segments) for name, module in originals.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        parent, _, leaf = name.rpartition(".")
        for siblings in SHARED_INPUT:
            if leaf in siblings:
                paths = [f"{parent}.{sibling}" for sibling in siblings]
                group = [layers[path] for path in paths if path in layers]
                group[0].group = group
    try:
        yield segments
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
