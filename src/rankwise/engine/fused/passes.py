"""Passes of a step: which examples of which trials go through the base together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One micro-batch of each of some trials that are neighbours in their sub-pack."""

    trials: slice
    rows: list[list[int]]  # examples of each of these trials
    tokens: int  # of all these examples


def step_passes(
    lengths: Sequence[int],
    batches: Sequence[Sequence[int]],
    shared: int,
    micro_batch_tokens: int | None = None,
) -> Iterator[Pass]:
    """Lay the batches of K trials out in passes, in the order of the trials.

    Args:
        lengths: number of tokens of each example.
        batches: rows of each trial's examples, K lists.
        shared: most tokens of several trials in a pass; a trial alone may have more.
        micro_batch_tokens: most tokens in any pass, as far as examples are not longer; None is any
            number.
    """
    if micro_batch_tokens is not None:
        shared = min(shared, micro_batch_tokens)
    start, rows, tokens = 0, list[list[int]](), 0
    for trial, batch in enumerate(batches):
        for micro_batch in micro_batches(lengths, batch, micro_batch_tokens):
            size = sum(lengths[row] for row in micro_batch)
            if rows and (tokens + size > shared or start + len(rows) > trial):
                yield Pass(slice(start, start + len(rows)), rows, tokens)
                rows, tokens = [], 0
            if not rows:
                start = trial
            rows.append(micro_batch)
            tokens += size
    if rows:
        yield Pass(slice(start, start + len(rows)), rows, tokens)


def micro_batches(
    lengths: Sequence[int], batch: Sequence[int], most: int | None
) -> Iterator[list[int]]:
    """Cut a batch into micro-batches as long as fit, of whole examples in their order."""
    rows: list[int] = []
    tokens = 0
    for row in batch:
        if rows and most is not None and tokens + lengths[row] > most:
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += lengths[row]
    if rows:
        yield rows
