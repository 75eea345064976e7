"""Order of the training examples: a function of the seed and the epoch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

MAX_POOL = 50  # batches whose examples are sorted by length together


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Draw the rows of an epoch's batches: shuffled, examples of similar length together.

    Sorting by length leaves little padding in a batch. Examples are shuffled and split into pools;
    a pool is sorted and split into batches; the batches are shuffled, so that length does not drift
    through the epoch. With at least four pools, where the data allow, an example meets different
    examples in every epoch. A last batch that is not full stays last.

    Args:
        lengths: number of tokens of each example, (N,).
        batch_size: number of examples in a batch.
        seed: the trial's seed.
        epoch: counted from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))  # (N,)
    pool = batch_size * max(1, min(MAX_POOL, len(lengths) // (4 * batch_size)))
    rows: list[int] = []
    for start in range(0, len(order), pool):
        rows += sorted(order[start : start + pool].tolist(), key=lambda row: lengths[row])
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    full = len(batches) - (len(batches[-1]) < batch_size)
    shuffled = [batches[i] for i in generator.permutation(full)]
    return shuffled + batches[full:]


def longest_rows(lengths: Sequence[int], count: int) -> list[int]:
    """Return the rows of the longest examples, from which a step's peak memory is measured."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)[-count:]


@dataclass
class EpochSampler:
    """Sampler for a data loader: each iteration yields the rows of the next `epoch_batches`."""

    lengths: Sequence[int]
    batch_size: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        batches = epoch_batches(self.lengths, self.batch_size, self.seed, self.epoch)
        self.epoch += 1
        return chain.from_iterable(batches)
