"""In which order examples are seen: a function of the seed and the epoch, of nothing else."""

from collections.abc import Iterator, Sequence

import numpy as np

MAX_POOL = 50  # batches that are sorted by length together


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Draw an epoch's batches: shuffled, examples of like length together, so that little is padding.

    Examples are shuffled, cut into pools, sorted by length within a pool and cut into batches, and the batches are
    shuffled, so that length does not drift through the epoch. At least four pools, where the data allow,
    keep a batch's company from being the same every epoch. A last batch that is short stays last.

    Args:
        lengths: tokens of each example, (N,).
        batch_size: examples in a batch.
        seed: of the trial.
        epoch: counted from 0.

    Returns:
        Batches of row numbers, together all N.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))  # (N,)
    pool = batch_size * max(1, min(MAX_POOL, len(lengths) // (4 * batch_size)))
    by_length = [
        row
        for start in range(0, len(order), pool)
        for row in sorted(order[start : start + pool].tolist(), key=lambda row: lengths[row])
    ]
    batches = [
        by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)
    ]
    full = len(batches) - (len(batches[-1]) < batch_size)
    shuffled = [batches[i] for i in generator.permutation(full)]
    return shuffled + batches[full:]


class EpochOrder:
    """A sampler for a data loader: rows in the order of `epoch_batches`, one epoch each time it is iterated."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        batches = epoch_batches(self.lengths, self.batch_size, self.seed, self.epoch)
        self.epoch += 1
        for batch in batches:
            yield from batch
