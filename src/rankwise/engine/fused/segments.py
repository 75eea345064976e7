"""Segments: which rows of a packed pass belong to which trial, and the adapter of each."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from rankwise.engine.fused.dropout import Dropout, DropoutStream
from rankwise.engine.fused.factors import Adapter, Part, StackedFactors
from rankwise.engine.fused.products import (
    GroupedProducts,
    MaskedProducts,
    Products,
    ProductsName,
)


@dataclass
class LoraSettings:
    """How the LoRA layers of a model compute, the same in all threads.

    Attributes:
        products: see `rankwise.engine.fused.products.choose_products`.
        dtype: precision of stacked factors.
        dropout: share of an adapter's input that is set to zero in training.
        keep_dequantized: keep the weights that a 4-bit layer computed with for its backward pass;
            with gradient checkpointing those of one block exist at a time.
        groups: layers that share an input.
    """

    products: ProductsName = "loop"
    dtype: torch.dtype = torch.float32
    dropout: float = 0.0
    keep_dequantized: bool = False
    groups: list[tuple[str, ...]] = field(default_factory=list)


class Segments(threading.local):
    """Row ranges of the current batch, and the adapter that applies to each range.

    These are the segments of Punica and S-LoRA. Each thread has its own passes and segments.
    """

    def __init__(self, settings: LoraSettings) -> None:
        self.settings = settings
        self.adapters: Sequence[Adapter] = ()  # those of K trials
        # First row of each trial, then the number of rows, (K + 1,).
        self.bounds: Sequence[int] = ()
        self.chunk = 0  # of a trial's tokens, whose masks differ from those of its other chunks
        # A layer's input may require no gradient; this scalar makes its backward pass run.
        self.grad_anchor = torch.zeros((), requires_grad=True)
        # Input and output of layers that were computed with a sibling.
        self.sibling_outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stack: StackedFactors | None = None
        self._stacked: _StackedPass | None = None
        self._streams: dict[int, DropoutStream] = {}  # by identity of the adapter
        self._micro_batches: dict[int, int] = {}

    def begin_step(
        self, adapters: Sequence[Adapter], streams: Sequence[DropoutStream | None]
    ) -> None:
        """Make copies of the adapters, which have changed, for the passes that follow.

        Args:
            adapters: those of all trials that take part in these passes.
            streams: the random stream of each, None if it is scored only.
        """
        pairs = zip(adapters, streams, strict=True)
        self._streams = {id(each): one for each, one in pairs if one is not None}
        self._micro_batches = dict.fromkeys(self._streams, -1)
        adapters = [factors for factors in adapters if factors]
        if self.settings.products == "loop" or not adapters:
            return
        # Scoring comes here in inference mode, whose tensors could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if self._stack is None or not self._stack.holds(adapters):
                self._stack = self._stacked = None  # frees the memory first
                trial_major = self.settings.products == "grouped"
                self._stack = StackedFactors(
                    adapters, self.settings.groups, self.settings.dtype, trial_major
                )
            self._stack.refresh()

    def end_step(self) -> None:
        """Bring the gradients of all passes since `begin_step` to the trials' buffers."""
        if self._stack is not None:
            self._stack.bring_gradients()

    def begin_pass(self, adapters: Sequence[Adapter]) -> None:
        """Let the trials of a pass go on to their next micro-batch."""
        for each in adapters:
            if id(each) in self._micro_batches:
                self._micro_batches[id(each)] += 1

    def assign(self, adapters: Sequence[Adapter], rows: Sequence[int], chunk: int = 0) -> None:
        """Tell the LoRA layers how many rows each of the K trials owns, in their order."""
        self.chunk = chunk
        self.adapters = [factors for factors in adapters if factors]
        self.bounds = [0, *accumulate(rows)]
        slots = self._stack.slots(self.adapters) if self._stack is not None else None
        self._stacked = None
        if self._stack is not None and slots is not None:
            self._stacked = _StackedPass(self._stack, slots, rows)

    def dropout(self, layer: str) -> Dropout | None:
        """Return the dropout of a layer's input in this pass, if there is any."""
        if self.settings.dropout == 0.0 or not self.adapters:
            return None
        keys = list(map(id, self.adapters))
        streams = [
            replace(self._streams[key], micro_batch=self._micro_batches[key], chunk=self.chunk)
            for key in keys
        ]
        return Dropout(self.settings.dropout, layer, streams, self.bounds)

    def stacked(self, names: tuple[str, ...], rows: int) -> tuple[Part, Products] | None:
        """Return the stacked factors of layers that get so many rows, and their products.

        None means to go by trial. So does the pooler inside a BERT model: it gets one row only, and
        nobody uses its output.
        """
        if self._stacked is None or rows != self.bounds[-1]:
            return None
        return self._stacked.of_layers(names)

    def snapshot(self) -> dict[str, Any]:
        """Return the state of the current pass, without outputs that wait for a sibling."""
        own = {"sibling_outputs": {}, "_micro_batches": dict(self._micro_batches)}
        return {**vars(self), **own}


class _StackedPass:
    """The part of a stack that takes part in a pass, and the products for its rows."""

    def __init__(self, stack: StackedFactors, slots: Sequence[int], rows: Sequence[int]) -> None:
        self._stack = stack
        self._first, self._stop = slots[0], slots[-1] + 1
        counts = [0] * (self._stop - self._first)  # trials in between may have no rows
        for slot, count in zip(slots, rows, strict=True):
            counts[slot - self._first] = count
        self._bounds = [0, *accumulate(counts)]
        self._products: dict[type, Products] = {}

    def of_layers(self, names: tuple[str, ...]) -> tuple[Part, Products]:
        part = self._stack.part(names, self._first, self._stop)
        # For one trial plain products are the same, and add in place.
        grouped = self._stack.trial_major and part.is_aligned and len(self._bounds) > 2
        kind = GroupedProducts if grouped else MaskedProducts
        if kind not in self._products:
            self._products[kind] = kind(self._bounds, part.a.device)
        return part, self._products[kind]
