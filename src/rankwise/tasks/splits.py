"""Train, held-out and test splits of a task's examples: fixed, stratified, and free of overlap."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankwise.errors import RequestError, some
from rankwise.tasks.base import Encoder, Examples, Objective, Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.readers import Table, read_table

HELD_OUT_SHARE = 0.2  # share of a data file that comes without held-out data
TEST_SHARE = 0.1  # share of such a file that no decision sees
SPLIT_SEED = 0
"""Seed of every split; `rankwise.sweeps.environment` lists the other fixed seeds."""
RATING_SCALE = 5  # this many different whole numbers as labels may be a scale, not classes
NO_EXAMPLES = Examples((), (), ())


@dataclass(frozen=True)
class Splits:
    """Train, held-out and test examples of a `Task`, with notes for the user."""

    train: Examples
    held_out: Examples
    test: Examples
    notes: tuple[str, ...] = ()

    def task(self, name: str, objective: Objective, encoder: Encoder, **more: Any) -> Task:
        """Return the task with these splits; ``more`` are its other fields."""
        return Task(name, objective, encoder, self.train, self.held_out, self.test, **more)


def number_examples(
    inputs: Sequence[Any], labels: Sequence[Any], table: Table | None = None
) -> Examples:
    """Return examples that have their row numbers as ids, those in the table if it is given."""
    rows = range(len(inputs)) if table is None else table.rows.index.tolist()
    return Examples(tuple(rows), tuple(inputs), tuple(labels))


def make_splits(
    config: DataConfig,
    examples: Examples,
    read_held_out: Callable[[Table], Examples],
    strata: Sequence[str] | None = None,
    noun: str = "texts",
) -> Splits:
    """Split a data file, or use all of it for training if the user gave held-out data.

    Args:
        config: data settings; ``eval_data`` and ``allow_duplicates`` are used.
        examples: all examples of ``data``.
        read_held_out: reads examples from the table in ``eval_data``.
        strata: class of each example, (N,), if they have classes.
        noun: name of the inputs in messages.
    """
    if config.eval_data is None:
        return split_examples(examples, strata or [""] * len(examples), noun=noun)
    table = read_table(config.eval_data)
    held_out = read_held_out(table)
    train_inputs = set(examples.inputs)
    shared = sum(text in train_inputs for text in held_out.inputs)
    if not shared:
        return Splits(examples, held_out, NO_EXAMPLES, table.notes)
    counts = f"{shared} of its {len(held_out)} {noun}"
    note = f"eval_data {str(config.eval_data)!r}: {counts} are in the training data too"
    if not config.allow_duplicates:
        raise RequestError(f"{note}; remove them from one, or allow them with --allow-duplicates")
    return Splits(examples, held_out, NO_EXAMPLES, (*table.notes, note))


def split_examples(
    examples: Examples,
    strata: Sequence[str],
    held_out_share: float = HELD_OUT_SHARE,
    test_share: float = TEST_SHARE,
    noun: str = "texts",
) -> Splits:
    """Split examples in three, with all copies of an input in one split.

    Shares are those of the different inputs. Each split keeps the shares of the ``strata``, the
    classes of the examples, (N,). The first copy of an input gives its class.
    """
    rows_of_input: dict[Hashable, list[int]] = {}
    for row, text in enumerate(examples.inputs):
        rows_of_input.setdefault(text, []).append(row)
    copies = list(rows_of_input.values())
    classes = [strata[rows[0]] for rows in copies]
    shares = [held_out_share, test_share]
    splits = stratified_split(classes, shares, SPLIT_SEED, f"different {noun}")
    train, held_out, test = (
        examples.take(sorted(row for index in split for row in copies[index])) for split in splits
    )
    extra = len(examples) - len(copies)
    if not extra:
        return Splits(train, held_out, test)
    note = f"{extra} of {len(examples)} {noun} are copies; copies of a text stay in one part"
    return Splits(train, held_out, test, (note,))


def limit_train(splits: Splits, limit: int | None, strata: Sequence[str] | None = None) -> Splits:
    """Keep at most ``limit`` training examples, with the shares of their classes if given."""
    if limit is None or limit >= len(splits.train):
        return splits
    strata = strata or [""] * len(splits.train)
    classes = len(set(strata))
    if limit < classes:
        raise RequestError(
            f"train_examples {limit}: the training data has {classes} classes, and each needs one "
            f"example at least; give {classes} or more"
        )
    return replace(splits, train=splits.train.take(stratified_sample(strata, limit, SPLIT_SEED)))


def stratified_split(
    labels: Sequence[str], fractions: Sequence[float], seed: int, noun: str = "examples"
) -> list[list[int]]:
    """Split row numbers into parts that keep the shares of the classes.

    A class needs a row for each part.

    Args:
        labels: class of each row, (N,).
        fractions: share of every part but the first, which takes the rest.
        seed: seed of the shuffle within each class.
        noun: name of the rows in messages.

    Returns:
        ``1 + len(fractions)`` disjoint lists of ascending row numbers, N in all.
    """
    parts: list[list[int]] = [[] for _ in range(1 + len(fractions))]
    _refuse_small_classes(labels, len(parts), noun)
    for rows in _shuffled_rows(labels, seed):
        start = 0
        for part, fraction in enumerate(fractions, start=1):
            size = max(1, round(fraction * len(rows)))
            parts[part].extend(rows[start : start + size].tolist())
            start += size
        parts[0].extend(rows[start:].tolist())
    return [sorted(part) for part in parts]


def stratified_sample(labels: Sequence[str], limit: int, seed: int) -> list[int]:
    """Sample at most ``limit`` rows that keep the shares of the classes, each class at least once.

    Returns ascending row numbers. Labels and seed are those of `stratified_split`; ``limit`` must
    not be below the number of classes.
    """
    rows_of_class = _shuffled_rows(labels, seed)
    shares = [limit / len(labels) * len(rows) for rows in rows_of_class]
    sizes = [max(1, round(share)) for share in shares]
    while sum(sizes) > limit:  # shares were rounded up, or a class has a share below 1
        large = [index for index, size in enumerate(sizes) if size > 1]
        sizes[max(large, key=lambda index: sizes[index] - shares[index])] -= 1
    kept = [rows[:size] for rows, size in zip(rows_of_class, sizes, strict=True)]
    return sorted(np.concatenate(kept).tolist())


def _refuse_small_classes(labels: Sequence[str], parts: int, noun: str) -> None:
    counts = Counter(sorted(labels))
    small = [f"{name!r} has {count}" for name, count in counts.items() if count < parts]
    if not small:
        return
    need = f"to be split into {parts} parts"
    if len(counts) == 1:  # dialogues or numbers, which have no classes
        raise RequestError(f"{len(labels)} {noun}: at least {parts} are needed {need}")
    if len(counts) >= RATING_SCALE and all(re.fullmatch(r"-?\d+", name) for name in counts):
        need += "; if these are numbers to predict: --task regression"
    raise RequestError(f"class {some(small)}: each class needs at least {parts} {noun} {need}")


def _shuffled_rows(labels: Sequence[str], seed: int) -> list[np.ndarray]:
    """Return the shuffled row numbers of each class, (n,) each."""
    generator, codes = np.random.default_rng(seed), np.asarray(labels)
    return [generator.permutation(np.flatnonzero(codes == name)) for name in np.unique(codes)]
