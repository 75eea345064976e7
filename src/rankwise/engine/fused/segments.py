"""Segments: which rows of a packed pass belong to which trial, and the adapter of each."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch


@dataclass
class LoraFactors:
    """A trial's adapter on one layer, ``delta_W = scaling * B @ A``, with its gradient buffers."""

    a: torch.Tensor  # A, (r, d_in)
    bt: torch.Tensor  # B^T, (r, d_out): long side last, for fast products with activations
    a_grad: torch.Tensor  # buffer to which the gradient of A is added
    bt_grad: torch.Tensor  # buffer to which the gradient of B^T is added
    scaling: float  # alpha / r, or alpha / sqrt(r)


Adapter = Mapping[str, LoraFactors]  # a trial's factors by layer


class Segments(threading.local):
    """Row ranges of the current batch, and the adapter that applies to each range.

    These are the segments of Punica and S-LoRA. Each thread has its own passes and segments.
    """

    def __init__(self) -> None:
        self.adapters: Sequence[Adapter] = ()  # those of K trials
        # First row of each trial, then the number of rows, (K + 1,).
        self.bounds: Sequence[int] = ()
        # A layer's input may require no gradient; this scalar makes its backward pass run.
        self.grad_anchor = torch.zeros((), requires_grad=True)
        # Input and output of layers that were computed with a sibling.
        self.sibling_outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def assign(self, adapters: Sequence[Adapter], rows: Sequence[int]) -> None:
        """Tell the LoRA layers how many rows each of the K trials owns, in their order."""
        self.adapters = [factors for factors in adapters if factors]
        self.bounds = [0, *accumulate(rows)]

    def snapshot(self) -> dict[str, Any]:
        """Return the state of the current pass, without outputs that wait for a sibling."""
        return {**vars(self), "sibling_outputs": {}}
