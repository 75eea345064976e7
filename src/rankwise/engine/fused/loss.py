"""Losses of a language model's tokens by chunks, so that the logits of all tokens never exist.

N supervised tokens with hidden states X (N, H) and a head W (V, H) would have logits (N, V), by far
the largest tensor of a step. Here c tokens go through the head at a time::

    z = x W^T + b              (c, V), in fp32 or fp64
    loss_i = log sum_j exp(z_ij) - z_i,target(i)
    dx = (softmax(z) - onehot(target)) W        (c, H)

While the head is frozen, dx is all that a backward pass needs, so the forward pass works it out
while the logits are at hand. The logits of a head that is trained are computed again instead.

PyTorch's own `torch.nn.functional.linear_cross_entropy` cuts a frozen head's tokens in the same way
(from 2.13), but it rounds losses to the precision of its input, which is 8 bits in bfloat16, copies
the whole head to fp32 on a CPU, and knows no soft cap.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from rankwise.models.device import kind_of_device

LOGITS_AT_ONCE = {"cpu": 2**23}  # 32 MB in fp32
MOST_LOGITS = 2**26  # on other devices: 256 MB, a product that keeps them busy
HEAD_ROWS = 4096  # rows of a head in half precision that are copied to fp32 together


Layer = Callable[[torch.Tensor], torch.Tensor]
"""A linear layer, or a function that calls one."""


@dataclass(frozen=True)
class TokenHead:
    """A language model's head: logits ``cap * tanh(scale * (x W^T + b) / cap)``.

    Attributes:
        layer: gives ``x W^T + b``.
        outputs: size of the vocabulary, V.
        scale: factor of the product (Granite, Cohere).
        cap: bound of the logits' absolute values (Gemma 2, section 2); None for none.
    """

    layer: Layer
    outputs: int
    scale: float = 1.0
    cap: float | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether no gradient reaches the layer."""
        return is_frozen(self.layer)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits in at least fp32, (n, H) to (n, V)."""
        product = _wide_product(self.layer, states) if self.is_frozen else self.layer(states)
        if product.itemsize < 4:
            product = product.float()
        scaled = product if self.scale == 1.0 else product * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def chunks(self, states: torch.Tensor) -> Iterator[slice]:
        """Yield ranges of rows that go through the head together; at least one, maybe empty."""
        rows = chunk_rows(self.outputs, kind_of_device(states))
        for start in range(0, max(1, len(states)), rows):
            yield slice(start, start + rows)


def is_frozen(layer: Any) -> bool:
    """Whether a layer is plain and frozen, so that its weight can be read and gets no gradient."""
    return type(layer) is nn.Linear and not any(each.requires_grad for each in layer.parameters())


def chunk_rows(outputs: int, device_type: str) -> int:
    """Return how many tokens go through a head of this vocabulary together."""
    return max(1, LOGITS_AT_ONCE.get(device_type, MOST_LOGITS) // outputs)


def frozen_token_losses(
    head: TokenHead, states: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return log-losses in nats under a frozen head, differentiable: (N, H) and (N,) to (N,)."""
    losses: torch.Tensor = _FrozenHead.apply(states, targets, head)
    return losses


def trained_token_losses(
    head_of: Callable[[int], TokenHead],
    states: torch.Tensor,
    targets: torch.Tensor,
    again: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Return log-losses in nats under a head that is trained: (N, H) and (N,) to (N,).

    Args:
        head_of: gives the head of a chunk by its number; heads differ in their dropout alone.
        states: hidden states.
        targets: the tokens to predict.
        again: runs a function so that it keeps its inputs alone, and runs again for gradients.
    """

    def losses(states: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        return cross_entropy(head_of(chunk).logits(states), targets, reduction="none")

    chunks = enumerate(head_of(0).chunks(states))
    return torch.cat([again(losses, states[rows], targets[rows], chunk) for chunk, rows in chunks])


def token_measures(
    head: TokenHead, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's log-loss, in float64 if the device has it, and whether it is likeliest.

    Args:
        head: the head.
        states: hidden states, (N, H).
        targets: the tokens to predict, (N,).
    """
    wide = torch.float32 if states.device.type == "mps" else torch.float64
    losses = torch.empty(len(states), dtype=wide, device=states.device)
    is_correct = torch.empty(len(states), dtype=torch.bool, device=states.device)
    for rows in head.chunks(states):
        logits, target = head.logits(states[rows]), targets[rows]  # (c, V), (c,)
        top, likeliest = logits.max(-1, keepdim=True)
        torch.eq(likeliest[:, 0], target, out=is_correct[rows])
        chosen = logits.gather(1, target[:, None]).sub_(top)[:, 0].to(wide)
        sums = logits.sub_(top).exp_().sum(-1, dtype=wide)
        losses[rows] = sums.log() - chosen
    return losses, is_correct


class _FrozenHead(torch.autograd.Function):
    """Losses of tokens under a frozen head, with the gradient of the hidden states, taken once."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, targets: torch.Tensor, head: TokenHead
    ) -> torch.Tensor:
        """Return (N,) losses; keep the gradient of each for its hidden state, (N, H)."""
        losses = []
        grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for rows in head.chunks(states):
            logits, target = head.logits(states[rows]), targets[rows, None]  # (c, V), (c, 1)
            slope = None  # of the soft cap
            if head.cap is not None and grad is not None:
                slope = 1 - (logits / head.cap).square_()
            top = logits.amax(-1, keepdim=True)
            chosen = logits.gather(1, target).sub_(top)
            sums = logits.sub_(top).exp_().sum(-1, keepdim=True)
            losses.append((sums.log() - chosen)[:, 0])
            if grad is not None:
                logits.div_(sums).scatter_add_(1, target, torch.full_like(sums, -1.0))
                if slope is not None:
                    logits.mul_(slope)
                if head.scale != 1.0:
                    logits.mul_(head.scale)
                _wide_product_grad(head.layer, logits, grad[rows])
        if grad is not None:
            ctx.save_for_backward(grad)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, dlosses: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """Return the gradient of the hidden states."""
        (grad,) = ctx.saved_tensors
        return grad.mul_(dlosses[:, None]), None, None  # in fp32, then rounded


def _wide_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return ``x W^T + b`` in at least fp32; x and W in half precision are not rounded again."""
    weight, bias = layer.weight, layer.bias
    if weight.itemsize >= 4:
        return linear(x.to(weight.dtype), weight, bias)
    if kind_of_device(x) == "cuda":
        product = torch.mm(x.to(weight.dtype), weight.t(), out_dtype=torch.float32)
    else:
        product = torch.empty(len(x), len(weight), device=x.device)
        x = x.float()
        parts = product.split(HEAD_ROWS, 1)
        for part, rows in zip(parts, weight.split(HEAD_ROWS), strict=True):
            part.copy_(x @ rows.float().t())
    return product if bias is None else product.add_(bias)


def _wide_product_grad(layer: Any, dproduct: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``dy W``, the gradient of the layer's input, to ``out``."""
    weight = layer.weight
    if weight.itemsize >= 4 or kind_of_device(dproduct) == "cuda":
        out.copy_(dproduct.to(weight.dtype) @ weight)
        return
    total = torch.zeros(out.shape, device=out.device)
    parts = dproduct.split(HEAD_ROWS, 1)
    for part, rows in zip(parts, weight.split(HEAD_ROWS), strict=True):
        total.addmm_(part, rows.float())
    out.copy_(total)
