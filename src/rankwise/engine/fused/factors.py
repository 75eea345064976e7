"""LoRA factors: those of one trial, and those of a pack stacked for products over all its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from rankwise.models.compat_foreach import foreach_add, foreach_copy, foreach_scale

# Tensor cores and grouped products read 16 bytes at a time: 8 numbers in half precision.
MULTIPLE = 8


@dataclass
class LoraFactors:
    """A trial's adapter on one layer, ``delta_W = scaling * B @ A``, with its gradient buffers."""

    a: torch.Tensor  # A, (r, d_in)
    bt: torch.Tensor  # B^T, (r, d_out): long side last, for fast products with activations
    a_grad: torch.Tensor  # buffer to which the gradient of A is added
    bt_grad: torch.Tensor  # buffer to which the gradient of B^T is added
    scaling: float  # alpha / r, or alpha / sqrt(r)


Adapter = Mapping[str, LoraFactors]  # a trial's factors by layer


@dataclass(frozen=True)
class Part:
    """The stacked factors of n layers with one input, for the trials of one pass.

    Gradients are None for adapters that are scored only.
    """

    a: torch.Tensor  # scaling * A, (n, K, R, d_in)
    bts: Sequence[torch.Tensor]  # B^T of each layer, (1, K, R, d_out)
    a_grad: torch.Tensor | None
    bt_grads: Sequence[torch.Tensor | None]

    @property
    def is_aligned(self) -> bool:
        """Whether all rows take a multiple of 16 bytes in half precision."""
        return all(tensor.shape[-1] % MULTIPLE == 0 for tensor in (self.a, *self.bts))


class StackedFactors:
    """A pack's factors in the precision of the base, zero-padded to one rank for each layer.

    Zeros in both A and B get a gradient of exactly zero, and none of it is brought back: a trial
    keeps its rank (section 4.3 of Hu et al. 2022 has the same argument for B = 0 alone)::

        layer group (q, k, v)      A (n, K, R, d_in)         B^T (K, R, d_out) for each layer
            trial 0, r = 2        [ s_0 A_0 | 0 0 0 0 0 0 ]  [ B_0^T | 0 0 0 0 0 0 ]
            trial 1, r = 8        [ s_1 A_1               ]  [ B_1^T               ]

    All copies lie in one tensor and all their gradients in another, so that a step clears them with
    one kernel. Copies are made once a step, gradients are brought to the trials' buffers once a
    step, each by a few kernels for all layers and trials.

    Args:
        adapters: factors of K trials, all on the same layers.
        groups: layers that share an input, in the order in which the model calls them.
        dtype: precision of the copies.
        trial_major: keep the layers of a trial together, ``(K, n, R, d)``, as grouped products
            need it; otherwise the trials of a layer, as one dense product needs it.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        groups: Sequence[Sequence[str]],
        dtype: torch.dtype,
        trial_major: bool,
    ) -> None:
        self.adapters = list(adapters)
        self.trial_major = trial_major
        self._multiple = 1 if dtype.itemsize > 2 and not trial_major else MULTIPLE
        first = next(iter(adapters[0].values()))
        self._trains = first.a_grad.shape == first.a.shape
        total = sum(shape.numel() for group in groups for shape in self._shapes(group))
        self._copies = torch.zeros(total, dtype=dtype, device=first.a.device)
        kept = total if self._trains else 0
        self._grads = torch.zeros(kept, dtype=first.a.dtype, device=first.a.device)
        self._parts: dict[tuple[str, ...], Part] = {}
        self._views: dict[tuple[tuple[str, ...], int, int], Part] = {}
        start = 0
        for group in groups:
            start = self._add_group(tuple(group), start)
        self._pair_with_masters()

    def _shapes(self, group: Sequence[str]) -> Iterator[torch.Size]:
        """Yield the shapes of a group's stacked tensors as they lie in memory."""
        factors = [adapter[name] for adapter in self.adapters for name in group]
        highest = max(each.a.shape[0] for each in factors)
        rank = -(-highest // self._multiple) * self._multiple
        count, trials = len(group), len(self.adapters)
        outer = (trials, count) if self.trial_major else (count, trials)
        yield torch.Size((*outer, rank, factors[0].a.shape[1]))
        for name in group:
            yield torch.Size((1, trials, rank, self.adapters[0][name].bt.shape[1]))

    def _add_group(self, group: tuple[str, ...], start: int) -> int:
        """Lay a group out from an entry of the flat tensors on; return the first one after it."""
        copies: list[torch.Tensor] = []
        grads: list[torch.Tensor | None] = []
        for shape in self._shapes(group):
            stop = start + shape.numel()
            copies.append(self._copies[start:stop].view(shape))
            grads.append(self._grads[start:stop].view(shape) if self._trains else None)
            start = stop
        a, a_grad = copies[0], grads[0]
        if self.trial_major:
            a = a.transpose(0, 1)
            a_grad = None if a_grad is None else a_grad.transpose(0, 1)
        self._parts[group] = Part(a, copies[1:], a_grad, grads[1:])
        return start

    def _pair_with_masters(self) -> None:
        """List each trial's factors beside its place in the stacks."""
        self._masters: list[torch.Tensor] = []
        self._places: list[torch.Tensor] = []
        self._master_grads: list[torch.Tensor] = []
        self._grad_places: list[torch.Tensor] = []
        self._scaled: list[int] = []  # which of them are A's, whose scaling is not 1
        self._scalings: list[float] = []
        for group, part in self._parts.items():
            for layer, name in enumerate(group):
                for trial, adapter in enumerate(self.adapters):
                    factors = adapter[name]
                    rank = factors.a.shape[0]
                    if factors.scaling != 1.0:
                        self._scaled.append(len(self._masters))
                        self._scalings.append(factors.scaling)
                    self._masters += [factors.a, factors.bt]
                    self._places += [
                        part.a[layer, trial, :rank],
                        part.bts[layer][0, trial, :rank],
                    ]
                    a_grad, bt_grad = part.a_grad, part.bt_grads[layer]
                    if a_grad is not None and bt_grad is not None:
                        self._master_grads += [factors.a_grad, factors.bt_grad]
                        self._grad_places += [a_grad[layer, trial, :rank], bt_grad[0, trial, :rank]]

    def holds(self, adapters: Sequence[Adapter]) -> bool:
        """Whether these are the adapters of the stack, in its order."""
        return list(map(id, adapters)) == list(map(id, self.adapters))

    def slots(self, adapters: Sequence[Adapter]) -> list[int] | None:
        """Return the places of adapters in the stack; None if one is missing or out of order."""
        places = {id(adapter): place for place, adapter in enumerate(self.adapters)}
        slots = [places.get(id(adapter), -1) for adapter in adapters]
        in_order = all(one < other for one, other in pairwise(slots))
        return slots if slots and slots[0] >= 0 and in_order else None

    def refresh(self) -> None:
        """Copy the trials' factors into the stacks, A with its scaling, and clear gradients.

        Gradients are left over from a step that ran out of memory.
        """
        self._grads.zero_()
        foreach_copy(self._places, self._masters)
        foreach_scale([self._places[index] for index in self._scaled], self._scalings)

    def bring_gradients(self) -> None:
        """Add the stacked gradients to the trials' buffers."""
        foreach_scale([self._grad_places[index] for index in self._scaled], self._scalings)
        foreach_add(self._master_grads, self._grad_places)

    def part(self, names: tuple[str, ...], first: int, stop: int) -> Part:
        """Return the factors of a group, or of one of its layers, for a range of trials."""
        key = (names, first, stop)
        if key not in self._views:
            group = next(group for group in self._parts if set(names) <= set(group))
            whole = self._parts[group]
            layers = [group.index(name) for name in names]
            of_layers, trials = slice(layers[0], layers[-1] + 1), slice(first, stop)
            a_grad = None if whole.a_grad is None else whole.a_grad[of_layers, trials]
            bt_grads = [None if grad is None else grad[:, trials] for grad in whole.bt_grads]
            bts = [whole.bts[layer][:, trials] for layer in layers]
            self._views[key] = Part(
                whole.a[of_layers, trials], bts, a_grad, [bt_grads[layer] for layer in layers]
            )
        return self._views[key]
