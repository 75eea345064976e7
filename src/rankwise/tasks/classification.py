"""Sequence classification: texts and labels to tokenised splits; logits to per-example loss and score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rankwise.config import SweepConfig
from rankwise.errors import RequestError, some
from rankwise.tasks import samples
from rankwise.tasks.readers import LABEL_NAMES, TEXT_NAMES, check_labels, check_texts, pick_column, read_table
from rankwise.tasks.split import stratified_split

if TYPE_CHECKING:
    import torch

HELD_OUT_SHARE = 0.2  # of a data file that comes without held-out data
TEST_SHARE = 0.1  # of such a file; no decision sees it
SAMPLE_HELD_OUT_SHARE = 0.12  # 1,024 of 8,530: scoring them takes a third of the time that training takes
SAMPLE_TEST_SHARE = 0.12
SPLIT_SEED = 0


@dataclass(frozen=True)
class Examples:
    """Texts and their classes: one part of the data.

    Attributes:
        ids: row of each example in its source, (N,).
        texts: (N,).
        labels: index of the class, (N,).
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        ids: row of each example in its source, (N,).
        input_ids: tokens of each, not padded, N lists.
        labels: index of the class, (N,).
    """

    ids: tuple[int, ...]
    input_ids: list[list[int]]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each example, (N,)."""
        return [len(tokens) for tokens in self.input_ids]


@dataclass(frozen=True)
class ClassificationTask:
    """A classification task, split once and for all.

    Attributes:
        name: for tables and reports.
        label_names: the classes; a label is an index into them.
        train: what adapters learn from.
        held_out: what ranks are judged by.
        test: what no decision sees, scored once for the chosen rank; empty where held-out data was given.
        notes: what was settled by itself and should be said aloud.
    """

    name: str
    label_names: tuple[str, ...]
    train: Examples
    held_out: Examples
    test: Examples
    notes: tuple[str, ...] = ()


def load_task(config: SweepConfig) -> ClassificationTask:
    """Read, check and split the data that a config names, or the built-in sample.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    if config.data is None:
        table = samples.rotten_tomatoes()
        task = _split(
            "Rotten Tomatoes sentences",
            list(table["text"]),
            list(table["label"]),
            held_out_share=SAMPLE_HELD_OUT_SHARE,
            test_share=SAMPLE_TEST_SHARE,
            notes=(),
        )
    else:
        task = _read_own(config, config.data)
    limit = config.train_examples or (samples.TRAIN_EXAMPLES if config.data is None else None)
    return _limit_train(task, limit)


def _read_own(config: SweepConfig, path: Path) -> ClassificationTask:
    table = read_table(path)
    text_column = pick_column(table, config.text_column, TEXT_NAMES, "text", path)
    label_column = pick_column(table, config.label_column, LABEL_NAMES, "label", path)
    if text_column == label_column:
        raise RequestError(
            f"text_column and label_column are both {text_column!r} of {str(path)!r}; name two columns: "
            f"{some(table.columns, 12)}"
        )
    notes: tuple[str, ...] = (f"texts from column {text_column!r}, labels from column {label_column!r} of {path.name}",)
    texts, labels = check_texts(table[text_column], path), check_labels(table[label_column], path)
    names = sort_labels(set(labels))
    if len(names) < 2:
        raise RequestError(
            f"column {label_column!r} of {str(path)!r} has one class only ({names[0]!r}); at least two are needed"
        )
    if config.eval_data is None:
        return _split(path.name, texts, labels, held_out_share=HELD_OUT_SHARE, test_share=TEST_SHARE, notes=notes)
    table = read_table(config.eval_data)
    for column, what in ((text_column, "text"), (label_column, "label")):
        pick_column(table, column, (), what, config.eval_data)
    eval_texts = check_texts(table[text_column], config.eval_data)
    eval_labels = check_labels(table[label_column], config.eval_data)
    unseen = sorted(set(eval_labels) - set(names))
    if unseen:
        raise RequestError(
            f"eval_data {str(config.eval_data)!r} has labels that the training data lacks: {some(unseen)}; "
            f"known: {some(names, 12)}"
        )
    known = set(texts)
    seen = sum(text in known for text in eval_texts)
    if seen:
        said = (
            f"eval_data {str(config.eval_data)!r}: {seen} of its {len(eval_texts)} texts are in the training data too"
        )
        if not config.allow_duplicates:
            raise RequestError(f"{said}; take them out of one of the two, or allow them with --allow-duplicates")
        notes += (said,)
    return ClassificationTask(
        name=path.name,
        label_names=names,
        train=_examples(texts, labels, names, range(len(texts))),
        held_out=_examples(eval_texts, eval_labels, names, range(len(eval_texts))),
        test=Examples((), (), ()),
        notes=notes,
    )


def _split(
    name: str,
    texts: list[str],
    labels: list[str],
    *,
    held_out_share: float,
    test_share: float,
    notes: tuple[str, ...],
) -> ClassificationTask:
    names = sort_labels(set(labels))
    train, held_out, test = _split_texts(texts, labels, [held_out_share, test_share])
    copies = len(texts) - len(set(texts))
    if copies:
        notes += (f"{copies} of {len(texts)} texts are copies of another; all copies of a text are kept in one part",)
    return ClassificationTask(
        name=name,
        label_names=names,
        train=_examples(texts, labels, names, train),
        held_out=_examples(texts, labels, names, held_out),
        test=_examples(texts, labels, names, test),
        notes=notes,
    )


def _split_texts(texts: list[str], labels: list[str], fractions: Sequence[float]) -> list[list[int]]:
    """Split rows so that the copies of a text are all in one part: that of the first, by its class."""
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text, []).append(row)
    copies = list(rows_of.values())
    parts = stratified_split([labels[rows[0]] for rows in copies], fractions, SPLIT_SEED, "different texts")
    return [sorted(row for position in part for row in copies[position]) for part in parts]


def _limit_train(task: ClassificationTask, limit: int | None) -> ClassificationTask:
    """Keep a stratified part of the training examples."""
    train = task.train
    if limit is None or limit >= len(train):
        return task
    names = [task.label_names[label] for label in train.labels]
    _, kept = stratified_split(names, [limit / len(train)], SPLIT_SEED)
    part = Examples(
        ids=tuple(train.ids[row] for row in kept),
        texts=tuple(train.texts[row] for row in kept),
        labels=tuple(train.labels[row] for row in kept),
    )
    return ClassificationTask(task.name, task.label_names, part, task.held_out, task.test, task.notes)


def _examples(texts: list[str], labels: list[str], names: Sequence[str], rows: Sequence[int]) -> Examples:
    index = {name: position for position, name in enumerate(names)}
    return Examples(
        ids=tuple(rows),
        texts=tuple(texts[row] for row in rows),
        labels=tuple(index[labels[row]] for row in rows),
    )


def sort_labels(names: set[str]) -> tuple[str, ...]:
    """Order class names: numbers by value, anything else by letter."""
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # "1" and "01" are two names
    except ValueError:
        return tuple(sorted(names))


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise examples; return them and how many were cut at ``max_length`` tokens."""
    if not len(examples):
        return Encoded((), [], ()), 0
    whole = tokenizer(list(examples.texts), truncation=False, verbose=False)["input_ids"]
    tokens = tokenizer(list(examples.texts), truncation=True, max_length=max_length)["input_ids"]
    cut = sum(len(long) > len(short) for long, short in zip(whole, tokens, strict=True))
    return Encoded(examples.ids, tokens, examples.labels), cut


def losses_and_scores(logits: "torch.Tensor", labels: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Return each example's log-loss in nats and whether its best class is the right one.

    Args:
        logits: (B, classes).
        labels: (B,), whole numbers.

    Returns:
        Loss (B,) in float64, computed in float64, and score (B,), 1.0 where right.
    """
    from torch.nn.functional import cross_entropy

    logits = logits.double().cpu()  # (B, classes)
    loss = cross_entropy(logits, labels.cpu(), reduction="none")  # (B,)
    return loss.numpy(), (logits.argmax(-1) == labels.cpu()).double().numpy()


def evidence_frame(ids: Sequence[int], loss: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """Put per-example results into a table: ``example_id``, ``loss``, ``score``, (N, 3)."""
    return pd.DataFrame({"example_id": np.asarray(ids, dtype=np.int64), "loss": loss, "score": score})
