"""Sequences laid end to end, so that no linear layer ever sees a padding token."""

from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

SPARE = 0.25  # of a block's places may be padding; a block more costs a CPU about as much as a few thousand places


@dataclass(frozen=True)
class Block:
    """Sequences of like length whose attention is computed together.

    Attributes:
        longest: places of each sequence, L.
        lengths: tokens of each sequence, (n,).
    """

    longest: int
    lengths: tuple[int, ...]

    @property
    def is_full(self) -> bool:
        """Whether every place holds a token."""
        return all(length == self.longest for length in self.lengths)


class Packing:
    """Where each token of a batch lies: end to end for linear layers, in blocks of like length for attention.

    Args:
        sequences: token ids of n sequences, T tokens in all.
        device: where the tensors go.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> None:
        self.device = device
        self.lengths = [len(sequence) for sequence in sequences]
        ends = list(accumulate(self.lengths))
        starts = [end - length for end, length in zip(ends, self.lengths, strict=True)]
        self.tokens = ends[-1]
        flat = [token for sequence in sequences for token in sequence]
        self.input_ids = torch.tensor([flat], device=device)  # (1, T)
        places = [place for length in self.lengths for place in range(length)]
        self.position_ids = torch.tensor([places], device=device)  # (1, T)
        self.first = torch.tensor(starts, device=device)  # (n,)
        self.last = torch.tensor(ends, device=device) - 1  # (n,)
        self._by_length = by_length = sorted(range(len(sequences)), key=self.lengths.__getitem__)
        groups = _group([self.lengths[row] for row in by_length])
        self.blocks: list[Block] = []
        self._pieces = []
        self.places, done = 0, 0
        for count in groups:
            rows = by_length[done : done + count]
            lengths = torch.tensor([self.lengths[row] for row in rows])
            longest = int(lengths.max())
            # A place without a token shows the sequence's last one: finite, masked, and without a gradient.
            offsets = torch.minimum(torch.arange(longest), lengths[:, None] - 1)  # (n, L)
            self._pieces.append(
                (torch.tensor([starts[row] for row in rows])[:, None] + offsets, lengths)
            )
            self.blocks.append(Block(longest, tuple(lengths.tolist())))
            self.places, done = self.places + count * longest, done + count
        self._by_heads: dict[int, HeadIndex] = {}

    def by_head(self, heads: int) -> "HeadIndex":
        """Return where the rows of ``(T * heads, d)`` go when attention wants them head by head."""
        if heads not in self._by_heads:
            self._by_heads[heads] = self._index(heads)
        return self._by_heads[heads]

    def _index(self, heads: int) -> "HeadIndex":
        head = torch.arange(heads)[:, None]  # (h, 1)
        rows, real = [], []
        for tokens, lengths in self._pieces:
            rows.append((tokens[:, None] * heads + head).flatten())  # (n, h, L) flattened
            real.append(
                (torch.arange(tokens.shape[1]) < lengths[:, None])[:, None]
                .expand(-1, heads, -1)
                .flatten()
            )
        source, is_real = torch.cat(rows), torch.cat(real)  # (P h,) each
        place = torch.empty(self.tokens * heads, dtype=torch.long)
        place[source[is_real]] = torch.arange(len(source))[is_real]
        return HeadIndex(
            source.to(self.device),
            place.to(self.device),
            (~is_real).nonzero()[:, 0].to(self.device),
        )

    @cached_property
    def order(self) -> torch.Tensor:
        """Return the sequences in the order in which the blocks have them, (n,)."""
        return torch.tensor(self._by_length, device=self.device)

    @cached_property
    def key_masks(self) -> list[torch.Tensor | None]:
        """Per block, what hides places without a token from a query, (n, 1, 1, L); None where there are none."""
        masks: list[torch.Tensor | None] = []
        for block in self.blocks:
            if block.is_full:
                masks.append(None)
                continue
            lengths = torch.tensor(block.lengths, device=self.device)
            empty = torch.arange(block.longest, device=self.device) >= lengths[:, None]  # (n, L)
            masks.append(empty[:, None, None] * hide(torch.float32))
        return masks


@dataclass(frozen=True)
class HeadIndex:
    """Ways from rows ``(T * heads, d)`` in token order to rows ``(P * heads, d)`` in head order, and back.

    Attributes:
        source: for each row in head order, the row it shows, (P * heads,).
        place: for each row in token order, where it went, (T * heads,).
        empty: rows in head order that are no token's.
    """

    source: torch.Tensor
    place: torch.Tensor
    empty: torch.Tensor


def hide(dtype: torch.dtype) -> float:
    """Return what a score gets added so that nothing attends there: finite, and finite still if added thrice.

    With -inf, a place that may see nothing would turn into NaN, and its gradient with it.
    """
    return torch.finfo(dtype).min / 4


def _group(lengths: Sequence[int]) -> list[int]:
    """Split ascending lengths into groups in which at most `SPARE` of the places are padding; return their sizes."""
    sizes: list[int] = []
    tokens = 0
    for length in lengths:
        if sizes and (sizes[-1] + 1) * length <= (tokens + length) / (1 - SPARE):
            sizes[-1] += 1
            tokens += length
        else:
            sizes.append(1)
            tokens = length
    return sizes


_current: ContextVar[Packing] = ContextVar("packing")


@contextmanager
def packed(packing: Packing) -> "Iterator[None]":
    """Let the attention inside the ``with`` block see sequences as this packing lays them."""
    token = _current.set(packing)
    try:
        yield
    finally:
        _current.reset(token)


def current_packing() -> Packing:
    """Return the packing of the ``with packed(...)`` block around this call."""
    return _current.get()
