"""A fixed, stratified split."""

import re
from collections.abc import Sequence

import numpy as np

from rankwise.errors import RequestError, some

MANY = 5
"""From so many whole numbers on, labels may be a scale, such as ratings, and no classes."""


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
