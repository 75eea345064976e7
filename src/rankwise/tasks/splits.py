"""From examples to the parts of a task: what is learnt from, what judges, what no decision sees."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError
from rankwise.tasks.base import Examples, Task
from rankwise.tasks.split import stratified_part, stratified_split

HELD_OUT_SHARE = 0.2  # of a data file that comes without held-out data
TEST_SHARE = 0.1  # of such a file; no decision sees it
SPLIT_SEED = 0
NONE = Examples((), (), ())

Parts = tuple[Examples, Examples, Examples, tuple[str, ...]]
"""Training, held-out and test examples, and what should be said about them."""


def all_examples(inputs: Sequence[Any], labels: Sequence[Any]) -> Examples:
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
