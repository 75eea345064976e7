"""Sequences laid end to end, so that no linear layer computes on padding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

# Largest share of padding in a block: one more block costs a CPU about as much time as a few
# thousand places.
MAX_PADDING = 0.25


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
    """Tokens of n sequences: end to end for linear layers, in blocks of places for attention."""

    def __init__(
        self, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self.device = device
        lengths = [len(sequence) for sequence in sequences]
        ends = list(accumulate(lengths))
        starts = [0, *ends[:-1]]
        self.tokens = ends[-1]  # T
        flat = [token for sequence in sequences for token in sequence]
        self.input_ids = torch.tensor([flat], device=device)  # (1, T)
        positions = [place for length in lengths for place in range(length)]
        self.position_ids = torch.tensor([positions], device=device)  # (1, T)
        self.first = torch.tensor(starts, device=device)  # rows of first tokens, (n,)
        self.last = torch.tensor(ends, device=device) - 1  # rows of last tokens, (n,)
        self._by_length = sorted(range(len(sequences)), key=lengths.__getitem__)
        self.blocks = [
            _block([lengths[i] for i in group], [starts[i] for i in group])
            for group in _groups(self._by_length, lengths)
        ]
        self.places = sum(block.count * block.longest for block in self.blocks)  # P
        self._by_heads: dict[int, HeadIndex] = {}

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
        self._by_heads[heads] = HeadIndex(*(index.to(self.device) for index in indices))
        return self._by_heads[heads]

    @cached_property
    def order(self) -> torch.Tensor:
        """The sequences in the order of the blocks, (n,)."""
        return torch.tensor(self._by_length, device=self.device)

    @cached_property
    def key_masks(self) -> list[torch.Tensor | None]:
        """For each block, the mask of places without a token, (n, 1, 1, L); None if it is full."""
        masks: list[torch.Tensor | None] = []
        for block in self.blocks:
            mask = None
            if not block.has_token.all():
                empty = ~block.has_token[:, None, None].to(self.device)
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


def _groups(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Group sequences, shortest first, with at most `MAX_PADDING` of a group's places empty."""
    groups: list[list[int]] = []
    tokens = 0
    for sequence in order:
        length = lengths[sequence]
        if groups and (len(groups[-1]) + 1) * length <= (tokens + length) / (1 - MAX_PADDING):
            groups[-1].append(sequence)
            tokens += length
        else:
            groups.append([sequence])
            tokens = length
    return groups


def _block(lengths: list[int], starts: list[int]) -> Block:
    place = torch.arange(lengths[-1])  # the longest sequence comes last
    length = torch.tensor(lengths)[:, None]  # (n, 1)
    rows = torch.tensor(starts)[:, None] + torch.minimum(place, length - 1)  # (n, L)
    return Block(len(lengths), lengths[-1], rows, place < length)


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
