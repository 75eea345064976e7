"""Sequences laid end to end, so that no linear layer computes on padding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

# Largest share of padding in a block: one more block costs a CPU about as much time as a few
# thousand places.
MAX_PADDING = 0.25


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device without waiting for the device.

    CUDA copies from pinned memory alone in this way: from other memory the host would wait until
    all kernels before have run.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Block:
    """Sequences of similar length whose attention is computed together.

    A place without a token copies its sequence's last token: finite, masked, without gradient.
    """

    count: int  # number of sequences, n
    longest: int  # places for each sequence, L
    rows: torch.Tensor  # token row that each place copies, (n, L)
    has_token: torch.Tensor  # whether a place holds a token, (n, L)


class Packing:
    """Tokens of n sequences: end to end for linear layers, in blocks of places for attention.

    It is made on the CPU, from arrays, so that a thread can make it ahead; `to` copies what a pass
    needs to a device. Blocks are made where attention asks for them.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self._lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))  # (n,)
        ends = self._lengths.cumsum()
        self.starts = ends - self._lengths  # rows of first tokens, on the host, (n,)
        self.tokens = int(ends[-1])  # T
        self.longest = int(self._lengths.max())
        ids = np.fromiter(chain.from_iterable(sequences), np.int64, self.tokens)
        positions = np.arange(self.tokens) - np.repeat(self.starts, self._lengths)
        self._rows = torch.from_numpy(np.concatenate([ids, positions, [0], ends]))
        self._by_heads: dict[int, HeadIndex] = {}
        self.to(device)

    def to(self, device: torch.device | str) -> "Packing":
        """Copy to a device, without waiting for it; return the packing itself."""
        self.device = torch.device(device)
        self._rows = to_device(self._rows, self.device)
        self.input_ids = self._rows[: self.tokens][None]  # (1, T)
        self.position_ids = self._rows[self.tokens : 2 * self.tokens][None]  # (1, T)
        bounds = self._rows[2 * self.tokens :]  # first row of each sequence, then T, (n + 1,)
        self.first = bounds[:-1]  # rows of first tokens, (n,)
        self.last = bounds[1:] - 1  # rows of last tokens, (n,)
        self.cu_seqlens = bounds.to(torch.int32)  # (n + 1,), as varlen attention wants it
        return self

    @cached_property
    def _by_length(self) -> npt.NDArray[np.int64]:
        """The sequences, shortest first."""
        return self._lengths.argsort(kind="stable")

    @cached_property
    def blocks(self) -> "list[Block]":
        """Sequences of similar length, shortest first."""
        groups = _groups(self._lengths[self._by_length].tolist())
        lengths = np.split(self._lengths[self._by_length], groups)
        starts = np.split(self.starts[self._by_length], groups)
        return [_block(*pair) for pair in zip(lengths, starts, strict=True)]

    @cached_property
    def places(self) -> int:
        """Number of places in all blocks, P."""
        return sum(block.count * block.longest for block in self.blocks)

    def by_head(self, heads: int) -> "HeadIndex":
        """Return the permutation of the rows of ``(T * heads, d)`` for attention head by head."""
        if heads in self._by_heads:
            return self._by_heads[heads]
        head = torch.arange(heads)[:, None]  # (h, 1)
        rows, real = [], []
        for block in self.blocks:
            rows.append((block.rows[:, None] * heads + head).flatten())  # (n, h, L) flattened
            real.append(block.has_token[:, None].expand(-1, heads, -1).flatten())
        source, is_real = torch.cat(rows), torch.cat(real)  # (P h,) each
        place = torch.empty(self.tokens * heads, dtype=torch.long)
        place[source[is_real]] = torch.arange(len(source))[is_real]
        indices = (source, place, (~is_real).nonzero()[:, 0])
        self._by_heads[heads] = HeadIndex(*(to_device(each, self.device) for each in indices))
        return self._by_heads[heads]

    @cached_property
    def order(self) -> torch.Tensor:
        """The sequences in the order of the blocks, (n,)."""
        return to_device(torch.from_numpy(self._by_length), self.device)

    @cached_property
    def key_masks(self) -> list[torch.Tensor | None]:
        """For each block, the mask of places without a token, (n, 1, 1, L); None if it is full."""
        masks: list[torch.Tensor | None] = []
        for block in self.blocks:
            mask = None
            if not block.has_token.all():
                empty = to_device(~block.has_token[:, None, None], self.device)
                mask = empty * masked_score(torch.float32)
            masks.append(mask)
        return masks


@dataclass(frozen=True)
class HeadIndex:
    """Permutation from ``(T * heads, d)`` in token order to ``(P * heads, d)`` in block order."""

    source: torch.Tensor  # for each row in block order, the row that it copies, (P * heads,)
    place: torch.Tensor  # for each row in token order, its row in block order, (T * heads,)
    empty: torch.Tensor  # rows in block order that hold no token


def masked_score(dtype: torch.dtype) -> float:
    """Return the number to add to a score that must not count; finite even if added three times.

    With -inf, a place that attends to nothing would become NaN, and so would its gradient.
    """
    return torch.finfo(dtype).min / 4


def _groups(lengths: Sequence[int]) -> list[int]:
    """Split rising lengths into groups with at most `MAX_PADDING` of their places empty.

    Returns:
        The first place of each group but the first.
    """
    splits: list[int] = []
    tokens = 0
    first = 0
    for place, length in enumerate(lengths):
        if place > first and (place - first + 1) * length > (tokens + length) / (1 - MAX_PADDING):
            splits.append(place)
            first, tokens = place, 0
        tokens += length
    return splits


def _block(lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Block:
    longest = int(lengths[-1])
    place = torch.arange(longest)
    length = torch.from_numpy(lengths)[:, None]  # (n, 1)
    rows = torch.from_numpy(starts)[:, None] + torch.minimum(place, length - 1)  # (n, L)
    return Block(len(lengths), longest, rows, place < length)


_current: ContextVar[Packing] = ContextVar("packing")


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """Let attention inside the ``with`` block use this packing."""
    token = _current.set(packing)
    try:
        yield
    finally:
        _current.reset(token)


def current_packing() -> Packing:
    """Return the packing of the ``with packed(...)`` block around this call."""
    return _current.get()
