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
    """Position of each token of a batch: end to end for linear layers, in blocks for attention.

    Args:
        sequences: token ids of n sequences, T tokens in all.
        device: device of the tensors.

    Attributes:
        lengths: tokens of each sequence, n.
        tokens: number of tokens, T.
        input_ids: token ids end to end, (1, T).
        position_ids: place of each token in its sequence, (1, T).
        first: row of each sequence's first token, (n,).
        last: row of each sequence's last token, (n,).
        blocks: sequences sorted by length, in blocks with little padding.
        places: number of places in all blocks, padding included, P.
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
        self.input_ids = torch.tensor([flat], device=device)
        positions = [place for length in self.lengths for place in range(length)]
        self.position_ids = torch.tensor([positions], device=device)
        self.first = torch.tensor(starts, device=device)
        self.last = torch.tensor(ends, device=device) - 1
        self._by_length = sorted(range(len(sequences)), key=self.lengths.__getitem__)
        self.blocks: list[Block] = []
        self._block_rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.places = 0
        done = 0
        for count in _block_sizes([self.lengths[row] for row in self._by_length]):
            self._add_block(self._by_length[done : done + count], starts)
            done += count
        self._by_heads: dict[int, HeadIndex] = {}

    def _add_block(self, sequences: Sequence[int], starts: Sequence[int]) -> None:
        """Append a block, and the token row that each of its places shows, (n, L).

        A place without a token shows its sequence's last token: finite, masked, without gradient.
        """
        lengths = torch.tensor([self.lengths[row] for row in sequences])
        longest = int(lengths.max())
        offsets = torch.minimum(torch.arange(longest), lengths[:, None] - 1)  # (n, L)
        first = torch.tensor([starts[row] for row in sequences])[:, None]  # (n, 1)
        self._block_rows.append((first + offsets, lengths))
        self.blocks.append(Block(longest, tuple(lengths.tolist())))
        self.places += len(sequences) * longest

    def by_head(self, heads: int) -> "HeadIndex":
        """Return the permutation of the rows of ``(T * heads, d)`` for attention head by head."""
        if heads not in self._by_heads:
            self._by_heads[heads] = self._index(heads)
        return self._by_heads[heads]

    def _index(self, heads: int) -> "HeadIndex":
        head = torch.arange(heads)[:, None]  # (h, 1)
        rows, real = [], []
        for tokens, lengths in self._block_rows:
            rows.append((tokens[:, None] * heads + head).flatten())  # (n, h, L) flattened
            has_token = torch.arange(tokens.shape[1]) < lengths[:, None]  # (n, L)
            real.append(has_token[:, None].expand(-1, heads, -1).flatten())
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
        """The sequences in the order of the blocks, (n,)."""
        return torch.tensor(self._by_length, device=self.device)

    @cached_property
    def key_masks(self) -> list[torch.Tensor | None]:
        """For each block, the mask of places without a token, (n, 1, 1, L); None if it is full."""
        masks: list[torch.Tensor | None] = []
        for block in self.blocks:
            if block.is_full:
                masks.append(None)
                continue
            lengths = torch.tensor(block.lengths, device=self.device)
            empty = torch.arange(block.longest, device=self.device) >= lengths[:, None]  # (n, L)
            masks.append(empty[:, None, None] * masked_score(torch.float32))
        return masks


@dataclass(frozen=True)
class HeadIndex:
    """Permutation from ``(T * heads, d)`` in token order to ``(P * heads, d)`` in block order.

    Attributes:
        source: for each row in block order, the row that it copies, (P * heads,).
        place: for each row in token order, its row in block order, (T * heads,).
        empty: rows in block order that hold no token.
    """

    source: torch.Tensor
    place: torch.Tensor
    empty: torch.Tensor


def masked_score(dtype: torch.dtype) -> float:
    """Return the number to add to a score that must not count; finite even if added three times.

    A place that attends to nothing would turn into NaN with -inf, and so would its gradient.
    """
    return torch.finfo(dtype).min / 4


def _block_sizes(lengths: Sequence[int]) -> list[int]:
    """Group ascending lengths, with at most `MAX_PADDING` of a group's places empty."""
    sizes: list[int] = []
    tokens = 0
    for length in lengths:
        if sizes and (sizes[-1] + 1) * length <= (tokens + length) / (1 - MAX_PADDING):
            sizes[-1] += 1
            tokens += length
        else:
            sizes.append(1)
            tokens = length
    return sizes


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
