"""LoRA products trial by trial, from the trials' own factors: the fastest way on a CPU."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from rankwise.engine.fused.dropout import Dropout
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.frozen import FrozenLayers


class LoraByTrial(torch.autograd.Function):
    """Sibling layers with one input; gradients of the factors go straight to their buffers.

    The products are in the precision of the frozen layers' output, and the buffers keep that of the
    factors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        grad_anchor: torch.Tensor,
        frozen: FrozenLayers,
        factors: list[list[LoraFactors]],
        bounds: Sequence[int],
        dropout: Dropout | None,
    ) -> tuple[torch.Tensor, ...]:
        """Return each layer's output, (..., d_out), from the shared input x, (..., d_in)."""
        ys, kept = frozen.outputs(x)  # (..., d_out)
        dtype = ys[0].dtype
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        x = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, d_in)
        dropped = x if dropout is None else dropout.apply(x, dropout.mask(x))
        inputs = _by_segment(dropped, bounds)
        outputs = [_by_segment(y.view(-1, y.shape[-1]), bounds) for y in ys]
        lows = []
        for layers, x_k, *ys_k in zip(factors, inputs, *outputs, strict=False):
            low = x_k @ _stacked_a(layers).to(dtype).t()  # (T_k, R), R = sum of the layers' r
            lows.append(low)
            for layer, layer_low, y_k in zip(layers, _by_layer(low, layers, 1), ys_k, strict=True):
                y_k.addmm_(layer_low, layer.bt.to(dtype))
        ctx.save_for_backward(x, *kept, *lows)
        ctx.frozen, ctx.factors, ctx.bounds, ctx.dropout = frozen, factors, bounds, dropout
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradient of x, and add those of the factors to their buffers."""
        x, *rest = ctx.saved_tensors  # (T, d_in)
        count = len(ctx.factors)
        kept, lows = rest[: len(rest) - count], rest[len(rest) - count :]  # K of (T_k, R)
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys]  # (T, d_out)
        dx = ctx.frozen.input_gradient(kept, flat) if ctx.needs_input_grad[0] else None
        mask = None if ctx.dropout is None else ctx.dropout.mask(x)
        inputs = _by_segment(x if mask is None else ctx.dropout.apply(x, mask), ctx.bounds)
        outputs = [_by_segment(dy, ctx.bounds) for dy in flat]
        dlows = []
        for layers, low, x_k, *dys_k in zip(ctx.factors, lows, inputs, *outputs, strict=False):
            dlow = _add_gradients(layers, low, x_k, dys_k)  # (T_k, R)
            dlows.append(dlow)
        if dx is not None:
            _add_input_gradient(ctx, dx, dlows, mask)
            dx = dx.view(ctx.input_shape).to(ctx.input_dtype)
        return dx, None, None, None, None, None


def _add_gradients(
    layers: Sequence[LoraFactors],
    low: torch.Tensor,
    x: torch.Tensor,
    dys: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Add the gradients of a trial's factors to their buffers; return that of ``low``, (T_k, R)."""
    dlows = []
    for layer, layer_low, dy in zip(layers, _by_layer(low, layers, 1), dys, strict=True):
        dlows.append(dy @ layer.bt.to(dy.dtype).t())  # (T_k, r)
        if dy.dtype == layer.bt_grad.dtype:
            layer.bt_grad.addmm_(layer_low.t(), dy)
        else:
            layer.bt_grad.add_(layer_low.t() @ dy)
    dlow = _joined(dlows, 1)
    da = dlow.t() @ x  # (R, d_in)
    for layer, layer_da in zip(layers, _by_layer(da, layers, 0), strict=True):
        layer.a_grad.add_(layer_da, alpha=layer.scaling)
    return dlow


def _add_input_gradient(
    ctx: Any, dx: torch.Tensor, dlows: Sequence[torch.Tensor], mask: torch.Tensor | None
) -> None:
    """Add ``dlow (s A)`` of each trial to its rows of dx, (T, d_in), through the dropout if any."""
    through = dx if mask is None else torch.zeros_like(dx)
    for layers, dlow, rows in zip(
        ctx.factors, dlows, _by_segment(through, ctx.bounds), strict=False
    ):
        rows.addmm_(dlow, _stacked_a(layers).to(dlow.dtype))
    if mask is not None:
        dx.add_(ctx.dropout.apply(through, mask))


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
