"""Products of token rows with the stacked factors of a pack, in a few kernels for all its trials.

Rows are (T, d), a range of them for each trial. Stacked factors are (n, K, R, d): n layers, K
trials, rank R after zero-padding, see `rankwise.engine.fused.factors.StackedFactors`. Three
products make forward and backward::

    down           low = rows stack^T    (T, d) to (T, n W)    x A^T, and dy B
    add_up         rows += low stack     (T, n W) to (T, d)    low B^T, and dlow A
    add_gradient   stack += low^T rows   for each trial alone  of A, and of B^T

W is R for `GroupedProducts`, which multiply each row with the factors of its own trial, and K R for
`MaskedProducts`, which multiply it with those of all trials and set the others' results to zero.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch.nn.functional import grouped_mm

from rankwise.engine.fused.packing import to_device

ProductsName = Literal["loop", "masked", "grouped"]
# Gradients are one batched product if rows padded to the longest segment are at most so many more.
MOST_PADDED = 2


def choose_products(device: torch.device, dtype: torch.dtype) -> ProductsName:
    """Return how the LoRA products of a pack run fastest on a device."""
    if device.type == "cpu":
        # Starting a product costs a CPU next to nothing, and padded ranks would cost arithmetic.
        return "loop"
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None:
        return "masked"
    # PyTorch has a kernel for two generations: Hopper and the data centres' Blackwell. Elsewhere
    # grouped_mm reads the offsets on the host and loops over the groups: it waits for the GPU.
    generation, _ = torch.cuda.get_device_capability(device)
    return "grouped" if generation in (9, 10) else "masked"


class Products(Protocol):
    """The products of one pass, for given row ranges."""

    def down(self, rows: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
        """Return ``rows stack^T``, (T, d) to (T, n W)."""
        ...

    def add_up(self, rows: torch.Tensor, low: torch.Tensor, stack: torch.Tensor) -> None:
        """Add ``low stack`` to rows, (T, n W) to (T, d)."""
        ...

    def add_gradient(self, stack: torch.Tensor, low: torch.Tensor, rows: torch.Tensor) -> None:
        """Add each trial's ``low^T rows`` to its part of a stack, (n, K, R, d)."""
        ...


class GroupedProducts:
    """Products by ``grouped_mm``: one kernel, each group of rows with its own matrix.

    Stacks must have the layers of a trial together in memory, and R and d multiples of 8.
    """

    def __init__(self, bounds: Sequence[int], device: torch.device) -> None:
        self._ends = to_device(torch.tensor(bounds[1:], dtype=torch.int32), device)

    def down(self, rows: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
        """Return ``rows stack^T``, (T, d) to (T, n R)."""
        return grouped_mm(rows, _by_trial(stack).transpose(1, 2), offs=self._ends)

    def add_up(self, rows: torch.Tensor, low: torch.Tensor, stack: torch.Tensor) -> None:
        """Add ``low stack`` to rows, (T, n R) to (T, d)."""
        rows.add_(grouped_mm(low, _by_trial(stack), offs=self._ends))

    def add_gradient(self, stack: torch.Tensor, low: torch.Tensor, rows: torch.Tensor) -> None:
        """Add each trial's ``low^T rows`` to its part of a stack, (n, K, R, d)."""
        layers, trials, rank, width = stack.shape
        # Only this layout lets groups start at any row: low^T by columns, rows by rows.
        products = grouped_mm(low.t(), rows, offs=self._ends)  # (K, n R, d)
        stack.transpose(0, 1).add_(products.view(trials, layers, rank, width))


class MaskedProducts:
    """Dense products with the factors of all trials, for any device and precision.

    A sum over rows of several trials would bring a diverged trial's NaN to the others, since 0
    times NaN is NaN. So gradients are sums over each trial's own rows.
    """

    def __init__(self, bounds: Sequence[int], device: torch.device) -> None:
        self._bounds = list(bounds)
        self._device = device
        self._counts = [stop - start for start, stop in pairwise(bounds)]

    def down(self, rows: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
        """Return ``rows stack^T``, zero where the factors are another trial's: (T, n K R)."""
        layers, trials, rank, width = stack.shape
        low = rows @ stack.reshape(-1, width).t()
        if trials > 1:
            low.view(-1, layers, trials, rank).masked_fill_(self._of_others, 0.0)
        return low

    def add_up(self, rows: torch.Tensor, low: torch.Tensor, stack: torch.Tensor) -> None:
        """Add ``low stack`` to rows, (T, n K R) to (T, d)."""
        flat = stack.reshape(-1, stack.shape[-1])
        if rows.dtype == low.dtype:
            rows.addmm_(low, flat)
        else:  # a layer in fp32 over a base in half precision
            rows.add_(low @ flat)

    def add_gradient(self, stack: torch.Tensor, low: torch.Tensor, rows: torch.Tensor) -> None:
        """Add each trial's ``low^T rows`` to its part of a stack, (n, K, R, d)."""
        layers, trials, rank, width = stack.shape
        own = low.unflatten(1, (layers, trials, rank))
        longest = max(self._counts)
        if trials > 1 and min(self._counts) > 0 and trials * longest <= MOST_PADDED * len(rows):
            own = own[self._padded_rows, :, self._padded_owners]  # (K L, n, R)
            own = own.view(trials, longest, -1).masked_fill_(self._is_padding, 0.0)
            padded = rows.index_select(0, self._padded_rows).view(trials, longest, width)
            products = torch.bmm(own.transpose(1, 2), padded)  # (K, n R, d)
            stack.transpose(0, 1).add_(products.view(trials, layers, rank, width))
            return
        for trial, (start, stop) in enumerate(pairwise(self._bounds)):
            lows = own[start:stop, :, trial].flatten(1)  # (T_k, n R)
            stack[:, trial].add_((lows.t() @ rows[start:stop]).view(layers, rank, width))

    @cached_property
    def _of_others(self) -> torch.Tensor:
        """Which trials do not own a row, (T, 1, K, 1)."""
        trials = torch.arange(len(self._counts), device=self._device)
        rows = torch.arange(self._bounds[-1], device=self._device)
        owners = torch.searchsorted(self._on_device[1:], rows, right=True)  # (T,)
        return (owners[:, None] != trials)[:, None, :, None]

    @cached_property
    def _padded_rows(self) -> torch.Tensor:
        """Each trial's rows, its last one repeated up to the longest segment, (K L,)."""
        first, last = self._on_device[:-1, None], self._on_device[1:, None] - 1
        places = torch.arange(max(self._counts), device=self._device)
        return torch.minimum(first + places, last).flatten()

    @cached_property
    def _padded_owners(self) -> torch.Tensor:
        """The trial of each padded row, (K L,)."""
        trials = torch.arange(len(self._counts), device=self._device)
        return trials.repeat_interleave(max(self._counts))

    @cached_property
    def _is_padding(self) -> torch.Tensor:
        """Which padded rows repeat a last row, (K, L, 1)."""
        counts = self._on_device.diff()[:, None]
        return (torch.arange(max(self._counts), device=self._device) >= counts)[..., None]

    @cached_property
    def _on_device(self) -> torch.Tensor:
        return to_device(torch.tensor(self._bounds), self._device)


def _by_trial(stack: torch.Tensor) -> torch.Tensor:
    """View (n, K, R, d) as (K, n R, d)."""
    return stack.transpose(0, 1).flatten(1, 2)
