"""Linear layers of a frozen base with the adapters of several trials, each on its own stretch of tokens."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rankwise.models.quantization import dequantized, is_quantized

# Layers of a module that are given the same input, as modelling code calls them, in the order in which it does.
OF_ONE_INPUT = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)


@dataclass
class Factors:
    """One trial's adapter on one layer: ``delta_W = scaling * B @ A``, with gradients kept beside the factors.

    Attributes:
        a: A, (r, d_in).
        bt: B transposed, (r, d_out): both factors then have their long side last, and every product with
            activations has the same fast layout.
        a_grad: is added to, (r, d_in).
        bt_grad: is added to, (r, d_out).
        scaling: alpha / r, or alpha / sqrt(r).
    """

    a: torch.Tensor
    bt: torch.Tensor
    a_grad: torch.Tensor
    bt_grad: torch.Tensor
    scaling: float


class Stretches(threading.local):
    """Whose tokens are where in the current pass; every thread has a pass of its own.

    Attributes:
        factors: of each trial in the pass, by layer.
        bounds: where each trial's tokens begin, and the end of the last, (K + 1,).
        trigger: a tensor that requires a gradient, so that autograd visits layers whose input requires none.
        ready: outputs that a layer has computed for others of the same input, by layer, each with that input.
    """

    def __init__(self) -> None:
        self.factors: Sequence[dict[str, Factors]] = ()
        self.bounds: Sequence[int] = ()
        self.trigger = torch.zeros((), requires_grad=True)
        self.ready: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


class FusedLinear(nn.Module):
    """Stands in for a linear layer: the frozen layer on all tokens at once, each trial's factors on its own.

    Args:
        base: ``nn.Linear``, GPT-2's ``Conv1D``, or a quantised linear layer of bitsandbytes.
        name: of the layer in the model.
        stretches: shared by all layers of a model.

    Attributes:
        group: the layers computed when this one is asked: itself, and those that will be given the same input.
    """

    def __init__(self, base: nn.Module, name: str, stretches: Stretches) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.stretches = stretches
        self.group: Sequence[FusedLinear] = [self]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b + s (x A^T) B^T``, (..., d_in) to (..., d_out)."""
        now = self.stretches
        given, y = now.ready.pop(self.name, (None, None))
        if given is x and y is not None:
            return y
        factors = [[trial[layer.name] for layer in self.group] for trial in now.factors]
        ys = _Apply.apply(x, now.trigger, [layer.base for layer in self.group], factors, now.bounds)
        now.ready.update(
            {layer.name: (x, own) for layer, own in zip(self.group[1:], ys[1:], strict=True)}
        )
        own_y: torch.Tensor = ys[0]
        return own_y


class _Apply(torch.autograd.Function):
    """Layers of one input. Thin products take a CPU more time than their work does; of these there are fewer.

    Gradients of factors are added to their own buffers: autograd would keep a copy of each until the end. Under
    autocast the products are in the lower precision, and the buffers stay in the factors' own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        trigger: torch.Tensor,
        bases: list[nn.Module],
        factors: list[list[Factors]],
        bounds: Sequence[int],
    ) -> tuple[torch.Tensor, ...]:
        ys = [base(x) for base in bases]  # (..., d_out)
        dtype = ys[0].dtype
        if torch.is_autocast_enabled(x.device.type):
            # bitsandbytes' layers give back the precision of x, which is fp32 after a norm; the rest is lower.
            dtype = torch.get_autocast_dtype(x.device.type)
            ys = [y.to(dtype) for y in ys]
        ctx.like = x.shape, x.dtype
        x = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, d_in)
        outputs = [_stretches(y.view(-1, y.shape[-1]), bounds) for y in ys]
        lows = []
        for own, x_k, *ys_k in zip(factors, _stretches(x, bounds), *outputs, strict=False):
            lows.append(x_k @ _stacked(own).to(dtype).t())  # (T_k, R), R = r for each layer
            for layer, own_low, y_k in zip(own, _apart(lows[-1], own, 1), ys_k, strict=True):
                y_k.addmm_(own_low, layer.bt.to(dtype))
        ctx.save_for_backward(x, *lows)
        ctx.bases, ctx.factors, ctx.bounds = bases, factors, bounds
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[Any, ...]:
        x, *lows = ctx.saved_tensors  # (T, d_in), (T_k, R) each
        shape, dtype = ctx.like
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys]  # (T, d_out)
        dx = None
        if ctx.needs_input_grad[0]:
            for base, dy in zip(ctx.bases, flat, strict=True):
                weight = frozen_weight(base).to(dy.dtype)
                dx = dy @ weight if dx is None else dx.addmm_(dy, weight)  # (T, d_in)
        inputs, outputs = _stretches(x, ctx.bounds), [_stretches(dy, ctx.bounds) for dy in flat]
        changes = [None] * len(inputs) if dx is None else _stretches(dx, ctx.bounds)
        for own, low, x_k, dx_k, *dys_k in zip(
            ctx.factors, lows, inputs, changes, *outputs, strict=False
        ):
            dlows = []
            for layer, own_low, dy_k in zip(own, _apart(low, own, 1), dys_k, strict=True):
                dlows.append(dy_k @ layer.bt.to(dy_k.dtype).t())  # (T_k, r)
                _add_product(layer.bt_grad, own_low.t(), dy_k)
            dlow = _beside(dlows, 1)  # (T_k, R)
            da = dlow.t() @ x_k  # (R, d_in)
            for layer, own_da in zip(own, _apart(da, own, 0), strict=True):
                layer.a_grad.add_(own_da, alpha=layer.scaling)
            if dx_k is not None:
                dx_k.addmm_(dlow, _stacked(own).to(dlow.dtype))
        return None if dx is None else dx.view(shape).to(dtype), None, None, None, None


def _beside(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _stacked(own: Sequence[Factors]) -> torch.Tensor:
    """Return each layer's A, scaled, below one another, (R, d_in)."""
    return _beside(
        [layer.a if layer.scaling == 1.0 else layer.a * layer.scaling for layer in own], 0
    )


def _apart(stacked: torch.Tensor, own: Sequence[Factors], dim: int) -> Sequence[torch.Tensor]:
    """Return each layer's part of the R rows or columns, views."""
    return (stacked,) if len(own) == 1 else stacked.split([layer.a.shape[0] for layer in own], dim)


def _stretches(rows: torch.Tensor, bounds: Sequence[int]) -> Sequence[torch.Tensor]:
    """Return each trial's rows, views of (T, ...)."""
    return (rows,) if len(bounds) == 2 else [rows[start:stop] for start, stop in pairwise(bounds)]


def _add_product(grad: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == grad.dtype:
        grad.addmm_(left, right)
    else:
        grad.add_(left @ right)


def is_fusable(layer: nn.Module) -> bool:
    """Whether `FusedLinear` can stand in for a layer."""
    return (
        isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    )  # bitsandbytes' layers are nn.Linear


def frozen_weight(base: Any) -> torch.Tensor:
    """Return a layer's weight, (d_out, d_in), out of its quantised form where it has one."""
    if is_quantized(base):
        return dequantized(base)
    weight: torch.Tensor = base.weight
    return weight.t() if type(base).__name__ == "Conv1D" else weight


@contextmanager
def fused_layers(model: nn.Module, names: Sequence[str]) -> Iterator[Stretches]:
    """Put `FusedLinear` in the place of the named layers until the end of the ``with`` block."""
    stretches = Stretches()
    originals = {name: model.get_submodule(name) for name in names}
    layers = {name: FusedLinear(module, name, stretches) for name, module in originals.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    for name in layers:
        parent, _, own = name.rpartition(".")
        for family in OF_ONE_INPUT:
            if own in family:
                group = [
                    layers[f"{parent}.{other}"] for other in family if f"{parent}.{other}" in layers
                ]
                group[0].group = group
    try:
        yield stretches
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
