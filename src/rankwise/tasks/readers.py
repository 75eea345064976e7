"""Data files and data sets, read once into a checked table with named columns."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankwise.errors import RequestError, nearest, reading, some
from rankwise.tasks.config import DataConfig
from rankwise.tasks.files import FORMATS, plain_name
from rankwise.tasks.hf_datasets import read_hub_dataset
from rankwise.tasks.sources import find_local, read_local

# Conventional column names, in lower case, the likeliest first.
LABEL_NAMES = (
    "label", "labels", "class", "target", "category", "sentiment", "intent", "score", "rating",
)  # fmt: skip
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
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+){0,2}")


@dataclass(frozen=True)
class Table:
    """Rows of a data file or data set; its index counts them from 0, messages from 1.

    Attributes:
        rows: the data; all column names are text.
        path: the file, directory or hub id that the rows were read from.
        notes: how they were read and what was not, to be printed.
    """

    rows: pd.DataFrame
    path: Path
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def find_column(self, names: Sequence[str]) -> str | None:
        """Return the column of the first lower-case name that the table has, or None.

        Case and blanks around a name do not count.
        """
        columns = {column.strip().lower(): column for column in reversed(self.columns)}
        return next((columns[name] for name in names if name in columns), None)

    def pick_column(self, wanted: str | None, names: Sequence[str], role: str) -> str:
        """Return the column that ``{role}_column`` names, or the first of the lower-case names."""
        if wanted is not None:
            self._require(wanted, f"{role}_column")
            return wanted
        column = self.find_column(names)
        if column is None:
            raise RequestError(
                f"{str(self.path)!r} has no column that is plainly the {role}; name it with "
                f"{role}_column; columns: {some(self.columns, 12)}"
            )
        return column

    def cells(self, column: str) -> pd.Series:
        """Return a column as it was read; refuse the request if there is none of this name."""
        self._require(column, "column")
        return self.rows[column]

    def texts(self, column: str) -> list[str]:
        """Return a column of texts; refuse cells that are missing, blank or not text."""
        values = self.cells(column)
        good = [isinstance(value, str) and bool(value.strip()) for value in values]
        self.refuse_bad_rows(column, good, "not a text", "allowed is text that is not blank")
        return [str(value) for value in values]

    def labels(self, column: str) -> list[str]:
        """Return a column of class names: ``1``, ``1.0`` and ``"1"`` are the same class."""
        names = [_label_name(value) for value in self.cells(column)]
        good = [name is not None for name in names]
        self.refuse_bad_rows(column, good, "not a label", "allowed are texts and whole numbers")
        return [name for name in names if name is not None]

    def numbers(self, column: str) -> list[float]:
        """Return a column of finite numbers; refuse all others."""
        values = pd.to_numeric(self.cells(column), errors="coerce")
        numbers = values.to_numpy(dtype=float, na_value=np.nan)  # (N,)
        good = np.isfinite(numbers).tolist()
        self.refuse_bad_rows(column, good, "not a number", "allowed are finite numbers")
        return numbers.tolist()

    def refuse_bad_rows(self, column: str, good: Sequence[bool], fault: str, allowed: str) -> None:
        """Refuse a column unless all its rows are good, (N,); the message names the bad ones."""
        numbers = zip(self.rows.index, good, strict=True)
        bad = [row + 1 for row, is_good in numbers if not is_good]
        if bad:
            raise RequestError(
                f"column {column!r} of {str(self.path)!r}: {fault} in {len(bad)} of "
                f"{len(good)} rows (row {some(bad)}); {allowed}"
            )

    def _require(self, column: str, option: str) -> None:
        if column not in self.columns:
            raise RequestError(
                f"{option} {column!r} is not in {str(self.path)!r}"
                f"{nearest(column, self.columns)}; columns: {some(self.columns, 12)}"
            )


@dataclass(frozen=True)
class TextColumns:
    """Columns of texts, of each pair's second text (None for single texts), and of labels."""

    text: str
    pair: str | None
    label: str

    def describe(self, path: Path) -> str:
        """Return a note on the columns that are used."""
        texts = f"texts from column {self.text!r}"
        if self.pair is not None:
            texts = f"pairs of texts from columns {self.text!r} and {self.pair!r}"
        return f"{texts}, labels from column {self.label!r} of {path.name}"

    def inputs(self, table: Table) -> Sequence[Any]:
        """Return the texts, or the pairs of texts, of all rows."""
        texts = table.texts(self.text)
        if self.pair is None:
            return texts
        return list(zip(texts, table.texts(self.pair), strict=True))


def find_text_columns(config: DataConfig, table: Table) -> TextColumns:
    """Return the columns that the user named, or else those with conventional names."""
    text, pair = config.text_column, config.text_pair_column
    if text is None and pair is None:
        found = ([table.find_column([name]) for name in names] for names in PAIR_NAMES)
        text, pair = next((columns for columns in found if None not in columns), (None, None))
    text = table.pick_column(text, TEXT_NAMES, "text")
    if pair is not None:
        pair = table.pick_column(pair, (), "text_pair")
    label = table.pick_column(config.label_column, LABEL_NAMES, "label")
    columns = {"text_column": text, "text_pair_column": pair, "label_column": label}
    for (option, column), (other_option, other_column) in combinations(columns.items(), 2):
        if column == other_column:
            raise RequestError(
                f"{option} and {other_option} are both {column!r} of {str(table.path)!r}; "
                f"name two columns: {some(table.columns, 12)}"
            )
    return TextColumns(text, pair, label)


def read_table(path: Path) -> Table:
    """Read a data file, a directory of data, or a data set of a hub.

    `rankwise.tasks.sources` says what a path may name. An empty cell is missing; words such as
    ``NA`` or ``None`` are texts like any other.

    Raises:
        RequestError: the data are missing, empty, of an unknown format, or malformed.
    """
    with reading(f"data {str(path)!r} cannot be read"):
        source = find_local(path)
        if source is not None:
            rows, notes = read_local(source)
        elif is_hub_id(path):
            rows, notes = read_hub_dataset(path), []
        else:
            raise RequestError(f"data {str(path)!r}: no such file")
    if rows.empty:
        raise RequestError(f"data {str(path)!r} is empty: it has no rows")
    rows.columns = [str(name) for name in rows.columns]
    return Table(rows, path, tuple(f"{path.name}: {note}" for note in notes))


def is_hub_id(path: Path) -> bool:
    """Whether a path may be ``OWNER/NAME``, ``OWNER/NAME:SPLIT`` or ``OWNER/NAME:CONFIG:SPLIT``.

    A path that exists is no hub id. A name with the ending of a data format is a missing file.
    """
    is_file_name = plain_name(path).suffix.lower() in FORMATS
    is_local = is_file_name or find_local(path) is not None
    return not is_local and HUB_ID.fullmatch(path.as_posix()) is not None


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, of all files in a directory, or of the rows of a hub's data."""
    source = find_local(path)
    if source is None:
        rows = read_table(path).rows.to_json(orient="split")
        return hashlib.sha256(rows.encode()).hexdigest()
    if source.path != path:
        part = f"{file_fingerprint(source.path)} {source.config} {source.split}"
        return hashlib.sha256(part.encode()).hexdigest()
    if path.is_dir():
        names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        lines = [f"{name} {file_fingerprint(path / name)}" for name in shown]
        whole = "\n".join(lines).encode(errors="surrogateescape")  # names may be no UTF-8
        return hashlib.sha256(whole).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _label_name(value: Any) -> str | None:
    """Return a label as text; None if it is missing or a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_missing = value is None or value is pd.NA or not str(value).strip()
    # A float that is still one is a fraction or NaN.
    return None if is_missing or isinstance(value, (float, list, dict)) else str(value)
