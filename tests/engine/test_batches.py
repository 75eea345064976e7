import numpy as np
import pytest

from rankwise.engine.batches import EpochSampler, epoch_batches, longest_rows

LENGTHS = [int(length) for length in np.random.default_rng(0).integers(3, 60, size=403)]


@pytest.mark.parametrize("batch_size", [1, 8, 500])
def test_every_example_comes_once_an_epoch_and_only_the_last_batch_is_short(
    batch_size: int,
) -> None:
    batches = epoch_batches(LENGTHS, batch_size, seed=1, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(403))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 0 < len(batches[-1]) <= batch_size


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_batches(LENGTHS, 8, seed=1, epoch=0)
    assert first == epoch_batches(LENGTHS, 8, seed=1, epoch=0)
    assert first != epoch_batches(LENGTHS, 8, seed=1, epoch=1)
    assert first != epoch_batches(LENGTHS, 8, seed=2, epoch=0)


def test_little_is_padding_and_length_does_not_drift() -> None:
    lengths = np.array(LENGTHS)
    batches = epoch_batches(LENGTHS, 8, seed=0, epoch=0)
    padded = sum(max(lengths[batch]) * len(batch) for batch in batches)
    plain = np.random.default_rng(0).permutation(403)
    unsorted = sum(max(lengths[plain[i : i + 8]]) * len(plain[i : i + 8]) for i in range(0, 403, 8))
    assert padded - lengths.sum() < 0.4 * (unsorted - lengths.sum())
    means = [lengths[batch].mean() for batch in batches]
    assert (
        abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.35
    )  # 52 batches: 2.5 standard errors


def test_the_sampler_moves_on_with_each_epoch() -> None:
    order = EpochSampler(LENGTHS, 8, seed=3)
    epochs = [list(order), list(order)]
    for epoch, rows in enumerate(epochs):
        assert rows == [row for batch in epoch_batches(LENGTHS, 8, 3, epoch) for row in batch]
    assert len(order) == 403


def test_the_longest_rows_are_those_with_most_tokens() -> None:
    rows = longest_rows(LENGTHS, 5)
    assert sorted(LENGTHS[row] for row in rows) == sorted(LENGTHS)[-5:]
    assert len(longest_rows(LENGTHS, 500)) == 403
