"""From examples to the parts of a task: what is learnt from, what judges, what no decision sees."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import RequestError, some
from rankwise.tasks.base import Examples, Task

HELD_OUT_SHARE = 0.2  # of a data file that comes without held-out data
TEST_SHARE = 0.1  # of such a file; no decision sees it
SPLIT_SEED = 0
MANY = 5
"""From so many whole numbers on, labels may be a scale, such as ratings, and no classes."""
NONE = Examples((), (), ())

Parts = tuple[Examples, Examples, Examples, tuple[str, ...]]
"""Training, held-out and test examples, and what should be said about them."""


def number_examples(inputs: Sequence[Any], labels: Sequence[Any]) -> Examples:
    """Return examples with the rows' numbers as ids."""
    return Examples(tuple(range(len(inputs))), tuple(inputs), tuple(labels))


def split_parts(
    examples: Examples,
    strata: Sequence[str],
    held_out_share: float = HELD_OUT_SHARE,
    test_share: float = TEST_SHARE,
    what: str = "texts",
) -> Parts:
    """Split examples into three parts, all copies of an input in one: that of the first, by its stratum.

    Args:
        examples: N of them.
        strata: whose shares are kept in each part, (N,).
        held_out_share: of the inputs.
        test_share: of the inputs.
        what: inputs are called in messages.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(examples.inputs):
        rows_of.setdefault(key, []).append(row)
    copies = list(rows_of.values())
    numbers = stratified_split(
        [strata[rows[0]] for rows in copies],
        [held_out_share, test_share],
        SPLIT_SEED,
        f"different {what}",
    )
    train, held_out, test = (
        examples.take(sorted(row for position in part for row in copies[position]))
        for part in numbers
    )
    extra = len(examples) - len(copies)
    said = f"{extra} of {len(examples)} {what} are copies of another; all copies of a text are kept in one part"
    return train, held_out, test, (said,) if extra else ()


def given_parts(
    train: Examples, held_out: Examples, path: Path, allow_duplicates: bool, what: str = "texts"
) -> Parts:
    """Take held-out examples as they were given, unless the training data holds them too.

    Raises:
        RequestError: it does, and that is not allowed.
    """
    known = set(train.inputs)
    seen = sum(key in known for key in held_out.inputs)
    said = f"eval_data {str(path)!r}: {seen} of its {len(held_out)} {what} are in the training data too"
    if seen and not allow_duplicates:
        raise RequestError(
            f"{said}; take them out of one of the two, or allow them with --allow-duplicates"
        )
    return train, held_out, NONE, (said,) if seen else ()


def limit_train(task: Task, limit: int | None, strata: Sequence[str]) -> Task:
    """Keep a stratified part of the training examples; ``strata`` are those of the training examples.

    Raises:
        RequestError: there are more strata than examples to keep.
    """
    if limit is None or limit >= len(task.train):
        return task
    classes = len(set(strata))
    if limit < classes:
        raise RequestError(
            f"train_examples {limit}: the training data has {classes} classes, of each of which one example is kept at "
            f"least; give {classes} or more"
        )
    return replace(task, train=task.train.take(stratified_part(strata, limit, SPLIT_SEED)))


def stratified_split(
    labels: Sequence[str], fractions: Sequence[float], seed: int, what: str = "examples"
) -> list[list[int]]:
    """Split row numbers into parts, with the shares of the classes kept in each.

    Args:
        labels: the class of each row, (N,).
        fractions: the share of every part but the first, which takes the rest.
        seed: of the shuffle within each class.
        what: to call the rows in a message.

    Returns:
        ``1 + len(fractions)`` disjoint lists of row numbers, each in ascending order, together all N.

    Raises:
        RequestError: a class has fewer rows than there are parts.
    """
    parts: list[list[int]] = [[] for _ in range(1 + len(fractions))]
    codes = np.asarray(labels)
    small = {
        str(name): int(count)
        for name, count in zip(*np.unique(codes, return_counts=True), strict=True)
    }
    small = {name: count for name, count in small.items() if count < len(parts)}
    if len(set(labels)) == 1 and small:  # no classes: dialogues, numbers
        least = len(parts)
        raise RequestError(
            f"{len(labels)} {what}: at least {least} are needed to be split into {least} parts"
        )
    if small:
        rows = [f"{name!r} has {count}" for name, count in small.items()]
        names = set(map(str, labels))
        numbers = len(names) >= MANY and all(re.fullmatch(r"-?\d+", name) for name in names)
        hint = "; if these are numbers to predict: --task regression" if numbers else ""
        raise RequestError(
            f"class {some(rows)}: each class needs at least {len(parts)} {what} to be split into {len(parts)} parts"
            f"{hint}"
        )
    for rows_of_class in _shuffled(labels, seed):
        start = 0
        for part, fraction in enumerate(fractions, start=1):
            size = max(1, round(fraction * len(rows_of_class)))
            parts[part].extend(rows_of_class[start : start + size].tolist())
            start += size
        parts[0].extend(rows_of_class[start:].tolist())
    return [sorted(part) for part in parts]


def stratified_part(labels: Sequence[str], most: int, seed: int) -> list[int]:
    """Choose at most so many rows, with the shares of the classes kept, and of each class one at least.

    Args:
        labels: the class of each row, (N,).
        most: no fewer than there are classes.
        seed: of the shuffle within each class.

    Returns:
        Row numbers in ascending order.
    """
    rows = _shuffled(labels, seed)
    shares = [most / len(labels) * len(own) for own in rows]
    sizes = [max(1, round(share)) for share in shares]
    while sum(sizes) > most:  # rounded up, or a class too small for a share of its own
        large = [index for index, size in enumerate(sizes) if size > 1]
        sizes[max(large, key=lambda index: sizes[index] - shares[index])] -= 1
    return sorted(row for own, size in zip(rows, sizes, strict=True) for row in own[:size].tolist())


def _shuffled(labels: Sequence[str], seed: int) -> list[np.ndarray]:
    """Return the shuffled rows of each class, (n,) each."""
    generator, codes = np.random.default_rng(seed), np.asarray(labels)
    return [generator.permutation(np.flatnonzero(codes == name)) for name in np.unique(codes)]
