"""Linear layers of a frozen base with the adapters of several trials, each on its own stretch of tokens."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rankwise.engine.quantization import dequantized, is_quantized


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
    """

    def __init__(self) -> None:
        self.factors: Sequence[dict[str, Factors]] = ()
        self.bounds: Sequence[int] = ()
        self.trigger = torch.zeros((), requires_grad=True)


class FusedLinear(nn.Module):
    """Stands in for a linear layer: the frozen layer on all tokens at once, each trial's factors on its own.

    Args:
        base: ``nn.Linear``, GPT-2's ``Conv1D``, or a quantised linear layer of bitsandbytes.
        name: of the layer in the model.
        stretches: shared by all layers of a model.
    """

    def __init__(self, base: nn.Module, name: str, stretches: Stretches) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.stretches = stretches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b + s (x A^T) B^T``, (..., d_in) to (..., d_out)."""
        now = self.stretches
        factors = [trial[self.name] for trial in now.factors]
        return _Apply.apply(x, now.trigger, self.base, factors, now.bounds)


class _Apply(torch.autograd.Function):
    """Gradients of factors are added to their own buffers: autograd would keep a copy of each until the end.

    Under autocast the products are in the lower precision, and the buffers stay in the factors' own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, trigger: torch.Tensor, base: nn.Module, factors: list[Factors], bounds: Sequence[int]
    ) -> torch.Tensor:
        y = base(x)  # (..., d_out)
        if torch.is_autocast_enabled(x.device.type):
            # bitsandbytes' layers give back the precision of x, which is fp32 after a norm; the rest is lower.
            y = y.to(torch.get_autocast_dtype(x.device.type))
        ctx.like = x.shape, x.dtype
        x, rows = x.reshape(-1, x.shape[-1]).to(y.dtype), y.view(-1, y.shape[-1])  # (T, d_in), (T, d_out)
        lows = []
        for own, x_k, y_k in zip(factors, _stretches(x, bounds), _stretches(rows, bounds), strict=False):
            low = x_k @ own.a.to(y.dtype).t()  # (T_k, r)
            y_k.addmm_(low, own.bt.to(y.dtype), alpha=own.scaling)
            lows.append(low)
        ctx.save_for_backward(x, *lows)
        ctx.base, ctx.factors, ctx.bounds = base, factors, bounds
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, *lows = ctx.saved_tensors  # (T, d_in), (T_k, r) each
        shape, dtype = ctx.like
        dy = dy.reshape(-1, dy.shape[-1])  # (T, d_out)
        dx = dy @ frozen_weight(ctx.base).to(dy.dtype) if ctx.needs_input_grad[0] else None  # (T, d_in)
        inputs, outputs = _stretches(x, ctx.bounds), _stretches(dy, ctx.bounds)
        dlows = []
        for own, low, x_k, dy_k in zip(ctx.factors, lows, inputs, outputs, strict=False):
            dlows.append(dy_k @ own.bt.to(dy.dtype).t())  # (T_k, r)
            _add_product(own.bt_grad, low.t(), dy_k, own.scaling)
            _add_product(own.a_grad, dlows[-1].t(), x_k, own.scaling)
        if dx is None:
            return None, None, None, None, None
        for own, dlow, dx_k in zip(ctx.factors, dlows, _stretches(dx, ctx.bounds), strict=False):
            dx_k.addmm_(dlow, own.a.to(dy.dtype), alpha=own.scaling)
        return dx.view(shape).to(dtype), None, None, None, None


def _stretches(rows: torch.Tensor, bounds: Sequence[int]) -> Sequence[torch.Tensor]:
    """Return each trial's rows, views of (T, ...)."""
    return (rows,) if len(bounds) == 2 else [rows[start:stop] for start, stop in pairwise(bounds)]


def _add_product(grad: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float) -> None:
    if left.dtype == grad.dtype:
        grad.addmm_(left, right, alpha=scaling)
    else:
        grad.add_(left @ right, alpha=scaling)


def is_fusable(layer: nn.Module) -> bool:
    """Whether `FusedLinear` can stand in for a layer."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # bitsandbytes' layers are nn.Linear


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
    for name, module in originals.items():
        model.set_submodule(name, FusedLinear(module, name, stretches))
    try:
        yield stretches
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
