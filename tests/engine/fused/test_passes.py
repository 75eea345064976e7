"""Passes: every example of every trial once, in order, within the limits."""

import random
from itertools import pairwise

import pytest

from rankwise.engine.fused.passes import micro_batches, step_passes


@pytest.mark.parametrize(
    ("shared", "micro", "expected"),
    [
        # Lengths are 5, 3, 4, 6: a trial alone may be longer than what trials share.
        (1024, None, [([[0, 1], [2, 3], [1]], 21)]),
        (18, None, [([[0, 1], [2, 3]], 18), ([[1]], 3)]),
        (8, None, [([[0, 1]], 8), ([[2, 3]], 10), ([[1]], 3)]),
        (0, None, [([[0, 1]], 8), ([[2, 3]], 10), ([[1]], 3)]),
        (1024, 9, [([[0, 1]], 8), ([[2]], 4), ([[3], [1]], 9)]),
        (1024, 1, [([[0]], 5), ([[1]], 3), ([[2]], 4), ([[3]], 6), ([[1]], 3)]),
    ],
)
def test_passes_are_as_long_as_the_limits_allow(
    shared: int, micro: int | None, expected: list[tuple[list[list[int]], int]]
) -> None:
    passes = step_passes([5, 3, 4, 6], [[0, 1], [2, 3], [1]], shared, micro)
    assert [(each.rows, each.tokens) for each in passes] == expected


def test_each_trial_gets_its_batch_in_order_and_at_most_one_micro_batch_in_a_pass() -> None:
    chooser = random.Random(0)
    lengths = [chooser.randint(1, 40) for _ in range(200)]
    for micro in (None, 30, 64, 200):
        batches = [chooser.sample(range(200), chooser.randint(1, 9)) for _ in range(6)]
        seen: list[list[int]] = [[] for _ in batches]
        for each in step_passes(lengths, batches, 100, micro):
            trials = range(len(batches))[each.trials]
            assert len(trials) == len(each.rows)
            for trial, rows in zip(trials, each.rows, strict=True):
                seen[trial] += rows
            rows_of_pass = [row for rows in each.rows for row in rows]
            assert each.tokens == sum(lengths[row] for row in rows_of_pass)
            if micro is not None:
                assert each.tokens <= micro or len(rows_of_pass) == 1
        assert seen == batches


def test_a_micro_batch_could_not_take_the_next_example() -> None:
    lengths = [3, 9, 2, 2, 2, 7, 1]
    parts = list(micro_batches(lengths, range(7), 8))
    assert parts == [[0], [1], [2, 3, 4], [5, 6]]
    for part, following in pairwise(parts):
        assert sum(lengths[row] for row in part) + lengths[following[0]] > 8
