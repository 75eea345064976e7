"""Which columns of a table hold the texts and the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.readers import check_texts, find_column, pick_column

TEXT_NAMES = ("text", "sentence", "content", "review", "document", "input", "comment", "body")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("query", "document"),
    ("text", "text_pair"),
)
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "target",
    "category",
    "sentiment",
    "intent",
    "score",
    "rating",
)


@dataclass(frozen=True)
class TextColumns:
    """Columns of a table.

    Attributes:
        text: with the texts.
        pair: with the second text of each pair; None where there is one text.
        label: with the labels.
    """

    text: str
    pair: str | None
    label: str

    def note(self, path: Path) -> str:
        """Say which columns were taken."""
        texts = f"texts from column {self.text!r}"
        if self.pair is not None:
            texts = f"pairs of texts from columns {self.text!r} and {self.pair!r}"
        return f"{texts}, labels from column {self.label!r} of {path.name}"

    def check(self, table: pd.DataFrame, path: Path) -> None:
        """Refuse a table without these columns."""
        for column, what in ((self.text, "text"), (self.pair, "text_pair"), (self.label, "label")):
            if column is not None:
                pick_column(table, column, (), what, path)

    def read_inputs(self, table: pd.DataFrame, path: Path) -> Sequence[Any]:
        """Return the texts, or the pairs of texts, checked row by row."""
        texts = check_texts(table[self.text], path)
        return (
            texts
            if self.pair is None
            else list(zip(texts, check_texts(table[self.pair], path), strict=True))
        )


def find_text_columns(config: SweepConfig, table: pd.DataFrame, path: Path) -> TextColumns:
    """Return the columns that were named, or those with conventional names.

    Raises:
        RequestError: a column is not there or stands for two things; those there are named.
    """
    text, pair = config.text_column, config.text_pair_column
    if text is None and pair is None:
        for names in PAIR_NAMES:
            first, second = (find_column(table, (name,)) for name in names)
            if first is not None and second is not None:
                text, pair = first, second
                break
    text = pick_column(table, text, TEXT_NAMES, "text", path)
    if pair is not None:
        pair = pick_column(table, pair, (), "text_pair", path)
    label = pick_column(table, config.label_column, LABEL_NAMES, "label", path)
    chosen = {"text_column": text, "text_pair_column": pair, "label_column": label}
    for (name, column), (other, same) in combinations(chosen.items(), 2):
        if column == same:
            raise RequestError(
                f"{name} and {other} are both {column!r} of {str(path)!r}; name two columns: {some(table.columns, 12)}"
            )
    return TextColumns(text, pair, label)
