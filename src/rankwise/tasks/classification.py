"""Sequence classification: texts, or pairs of texts, and labels to parts; texts to tokens."""

from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.losses import ClassificationObjective
from rankwise.tasks.readers import TextColumns, check_labels, find_text_columns, read_table
from rankwise.tasks.splits import Parts, given_parts, limit_train, number_examples, split_parts

SAMPLE_HELD_OUT_SHARE = (
    0.12  # 1,024 of 8,530: scoring them takes a third of the time that training takes
)
SAMPLE_TEST_SHARE = 0.12


def load_sample(config: DataConfig) -> Task:
    """Return the built-in task."""
    table = samples.rotten_tomatoes()
    labels = list(table["label"])
    names = sort_labels(set(labels))
    examples = number_examples(list(table["text"]), [names.index(label) for label in labels])
    parts = split_parts(examples, labels, SAMPLE_HELD_OUT_SHARE, SAMPLE_TEST_SHARE)
    return _task(
        "Rotten Tomatoes sentences",
        names,
        parts,
        (),
        config.train_examples or samples.TRAIN_EXAMPLES,
    )


def load_classification(config: DataConfig, table: pd.DataFrame, path: Path) -> Task:
    """Check and split a table of texts and labels.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    columns = find_text_columns(config, table, path)
    inputs, labels = columns.read_inputs(table, path), check_labels(table[columns.label], path)
    names = sort_labels(set(labels))
    if len(names) < 2:
        raise RequestError(
            f"column {columns.label!r} of {str(path)!r} has one class only ({names[0]!r}); at least two are needed"
        )
    examples = number_examples(inputs, [names.index(label) for label in labels])
    if config.eval_data is None:
        parts = split_parts(examples, labels)
    else:
        held_out = _read_held_out(config.eval_data, columns, names)
        parts = given_parts(examples, held_out, config.eval_data, config.allow_duplicates)
    return _task(path.name, names, parts, (columns.note(path),), config.train_examples)


def _read_held_out(path: Path, columns: TextColumns, names: tuple[str, ...]) -> Examples:
    table = read_table(path)
    columns.check(table, path)
    inputs, labels = columns.read_inputs(table, path), check_labels(table[columns.label], path)
    unseen = sorted(set(labels) - set(names))
    if unseen:
        raise RequestError(
            f"eval_data {str(path)!r} has labels that the training data lacks: {some(unseen)}; known: {some(names, 12)}"
        )
    return number_examples(inputs, [names.index(label) for label in labels])


def _task(
    name: str, names: tuple[str, ...], parts: Parts, notes: tuple[str, ...], limit: int | None
) -> Task:
    train, held_out, test, more = parts
    task = Task(
        name, ClassificationObjective(names), encode, train, held_out, test, (*notes, *more)
    )
    return limit_train(task, limit, [names[label] for label in train.labels])


def sort_labels(names: set[str]) -> tuple[str, ...]:
    """Order class names: numbers by value, anything else by letter."""
    try:
        return tuple(
            sorted(names, key=lambda name: (int(name), name))
        )  # "1" and "01" are two names
    except ValueError:
        return tuple(sorted(names))


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise texts or pairs of texts; return them and how many were cut at ``max_length`` tokens.

    Of a pair, tokens are taken off the longer text's end.
    """
    if not len(examples):
        return Encoded((), [], ()), 0
    columns = (
        list(zip(*examples.inputs, strict=True))
        if isinstance(examples.inputs[0], tuple)
        else [examples.inputs]
    )
    texts = [list(column) for column in columns]
    whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)
    cut = sum(
        len(long) > len(short) for long, short in zip(whole, tokens["input_ids"], strict=True)
    )
    segments = tokens.get("token_type_ids") if len(texts) == 2 else None
    return Encoded(examples.ids, tokens["input_ids"], examples.labels, segments), cut
