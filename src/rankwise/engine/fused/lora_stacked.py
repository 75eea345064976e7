"""LoRA products of a whole pack at once, from its stacked factors."""

from typing import Any

import torch

from rankwise.engine.fused.dropout import Dropout
from rankwise.engine.fused.factors import Part
from rankwise.engine.fused.frozen import FrozenLayers
from rankwise.engine.fused.products import Products


class StackedLora(torch.autograd.Function):
    """Sibling layers with one input; gradients of the factors go to stacked buffers.

    The number of kernels depends on the number of layers alone, not on that of trials. (With
    dropout there is one more for each trial, which draws its mask.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        grad_anchor: torch.Tensor,
        frozen: FrozenLayers,
        part: Part,
        products: Products,
        dropout: Dropout | None,
    ) -> tuple[torch.Tensor, ...]:
        """Return each layer's output, (..., d_out), from the shared input x, (..., d_in)."""
        ys, kept = frozen.outputs(x)  # (..., d_out)
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        rows = _rows(x, part.a.dtype)  # (T, d_in)
        dropped = rows if dropout is None else dropout.apply(rows, dropout.mask(rows))
        low = products.down(dropped, part.a)  # (T, n W)
        for y, layer_low, bt in zip(ys, low.chunk(len(ys), 1), part.bts, strict=True):
            products.add_up(y.view(-1, y.shape[-1]), layer_low, bt)
        ctx.save_for_backward(rows, low, *kept)
        ctx.frozen, ctx.part, ctx.products, ctx.dropout = frozen, part, products, dropout
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradient of x, and add those of the factors to the stacked buffers."""
        part, products = ctx.part, ctx.products
        rows, low, *kept = ctx.saved_tensors
        flat = [_rows(dy, part.a.dtype) for dy in dys]  # (T, d_out)
        dlows = [products.down(dy, bt) for dy, bt in zip(flat, part.bts, strict=True)]
        dlow = dlows[0] if len(dlows) == 1 else torch.cat(dlows, 1)  # (T, n W)
        mask = None if ctx.dropout is None else ctx.dropout.mask(rows)
        dropped = rows if mask is None else ctx.dropout.apply(rows, mask)
        products.add_gradient(part.a_grad, dlow, dropped)
        lows = low.chunk(len(flat), 1)
        for layer_low, dy, bt_grad in zip(lows, flat, part.bt_grads, strict=True):
            products.add_gradient(bt_grad, layer_low, dy)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        dx = ctx.frozen.input_gradient(kept, [dy.reshape(-1, dy.shape[-1]) for dy in dys])
        if mask is None:
            products.add_up(dx, dlow, part.a)
        else:
            through = torch.zeros_like(dx)
            products.add_up(through, dlow, part.a)
            dx.add_(ctx.dropout.apply(through, mask))
        return dx.view(ctx.input_shape).to(ctx.input_dtype), None, None, None, None, None


def _rows(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """View (..., d) as (T, d), each row after the other in memory."""
    return tensor.reshape(-1, tensor.shape[-1]).to(dtype).contiguous()
