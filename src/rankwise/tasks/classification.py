"""Sequence classification: texts, or pairs of texts, with class labels."""

from collections.abc import Sequence
from typing import Any

from rankwise.errors import RequestError, some
from rankwise.tasks import samples, splits
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.labels import keep_labelled, refuse_label_sets
from rankwise.tasks.losses import ClassificationObjective
from rankwise.tasks.readers import Table, find_text_columns

SAMPLE_HELD_OUT_SHARE = 0.12  # 1,024 of 8,530: scoring takes a third of the training time
SAMPLE_TEST_SHARE = 0.12


def load_sample(config: DataConfig) -> Task:
    """Return the built-in task, Rotten Tomatoes sentences."""
    table = samples.rotten_tomatoes()
    labels = list(table["label"])
    names = sort_labels(set(labels))
    examples = _index_labels(list(table["text"]), labels, names)
    parts = splits.split_examples(examples, labels, SAMPLE_HELD_OUT_SHARE, SAMPLE_TEST_SHARE)
    limit = config.train_examples or samples.TRAIN_EXAMPLES
    return _make_task("Rotten Tomatoes sentences", names, parts, limit)


def load_classification(config: DataConfig, table: Table) -> Task:
    """Check and split a table of texts and class labels."""
    columns = find_text_columns(config, table)
    refuse_label_sets(table, columns.label)
    table, notes = keep_labelled(table, columns.label)
    labels = table.labels(columns.label)
    names = sort_labels(set(labels))
    if len(names) < 2:
        raise RequestError(
            f"column {columns.label!r} of {str(table.path)!r} has one class only ({names[0]!r}); "
            "at least two are needed"
        )

    def read_held_out(table: Table) -> Examples:
        held_out, left_out = keep_labelled(table, columns.label)
        notes.extend(f"eval_data: {note}" for note in left_out)
        labels = held_out.labels(columns.label)
        unseen = sorted(set(labels) - set(names))
        if unseen:
            raise RequestError(
                f"eval_data {str(table.path)!r} has labels that the training data lacks: "
                f"{some(unseen)}; known: {some(names, 12)}"
            )
        return _index_labels(columns.inputs(held_out), labels, names, held_out)

    examples = _index_labels(columns.inputs(table), labels, names, table)
    parts = splits.make_splits(config, examples, read_held_out, labels)
    notes.insert(0, columns.describe(table.path))
    return _make_task(table.path.name, names, parts, config.train_examples, *notes)


def sort_labels(names: set[str]) -> tuple[str, ...]:
    """Sort class names by value if all are numbers, or else by letter."""
    try:
        # The name itself comes second, because "1" and "01" are two classes.
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise texts or pairs of texts; return them with the number of truncated ones.

    At most ``max_length`` tokens are kept of an example: the longer text of a pair loses its end
    first.
    """
    if not len(examples):
        return Encoded((), [], ()), 0
    is_pair = isinstance(examples.inputs[0], tuple)
    columns = zip(*examples.inputs, strict=True) if is_pair else [examples.inputs]
    texts = [list(column) for column in columns]
    whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)
    kept = tokens["input_ids"]
    truncated = sum(len(long) > len(short) for long, short in zip(whole, kept, strict=True))
    token_type_ids = tokens.get("token_type_ids") if is_pair else None
    return Encoded(examples.ids, kept, examples.labels, token_type_ids), truncated


def _index_labels(
    inputs: Sequence[Any], labels: list[str], names: tuple[str, ...], table: Table | None = None
) -> Examples:
    index = {name: number for number, name in enumerate(names)}
    indices = [index[label] for label in labels]
    return splits.number_examples(inputs, indices, table)


def _make_task(
    name: str, names: tuple[str, ...], parts: splits.Splits, limit: int | None, *notes: str
) -> Task:
    labels = [names[label] for label in parts.train.labels]
    kept = splits.limit_train(parts, limit, labels)
    return kept.task(name, ClassificationObjective(names), encode, notes=(*notes, *kept.notes))
