"""Tables of texts and labels, read from files and checked row by row."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, nearest, some
from rankwise.tasks.config import DataConfig
from rankwise.tasks.hf_datasets import is_saved_dataset, read_hub_dataset, read_saved_dataset

FORMATS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".parquet": "Parquet",
}
SEPARATORS = {";": "';'", "\t": "a tab", ",": "','"}
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
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+){0,2}")


def is_hub_id(path: Path) -> bool:
    """Whether a path may be ``OWNER/NAME``, ``OWNER/NAME:SPLIT`` or ``OWNER/NAME:CONFIG:SPLIT``.

    What is there is no id, nor is a name with a file's ending: that file is missing.
    """
    known_ending = path.suffix.lower() in FORMATS
    return not known_ending and not path.exists() and HUB_ID.fullmatch(path.as_posix()) is not None


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV, JSON lines or Parquet file, as the ending of its name says, or a data set: saved, or a hub's.

    An empty cell is missing; words such as ``NA`` or ``None`` are texts like any other.

    Raises:
        RequestError: the file is missing, empty, of an unknown kind, or not what its name says.
    """
    if path.is_dir() and is_saved_dataset(path):
        return _checked(read_saved_dataset(path), path)
    if is_hub_id(path):
        return _checked(read_hub_dataset(path), path)
    if not path.is_file():
        what = (
            "is a directory, and no data set that datasets saved"
            if path.is_dir()
            else "no such file"
        )
        raise RequestError(f"data {str(path)!r}: {what}")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"data {str(path)!r}: allowed endings are {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise RequestError(f"data {str(path)!r} is empty")
    try:
        if kind == "JSON lines":
            # dtype=False: the label "1" stays a text and the label 1 a number, as they were written.
            table = pd.read_json(path, lines=True, dtype=False)
        elif kind == "Parquet":
            table = pd.read_parquet(path)
        else:
            separator = "," if kind == "CSV" else "\t"
            _refuse_other_separator(path, kind, separator)
            # low_memory=False: one type for a whole column, so that a text that is all digits stays a text.
            table = pd.read_csv(
                path, sep=separator, keep_default_na=False, na_values=[""], low_memory=False
            )
    except RequestError:
        raise
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise RequestError(
            f"data {str(path)!r} cannot be read as {kind}: {' '.join(str(error).split())}"
        ) from None
    return _checked(table, path)


def _refuse_other_separator(path: Path, kind: str, separator: str) -> None:
    """Refuse a table whose first line has none of its separators but another's, as European spreadsheets write it.

    Raises:
        RequestError: saying how to get a table that is read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    others = [sign for sign in SEPARATORS if sign in header]
    if separator in header or not others:
        return
    ending = {",": ".csv", "\t": ".tsv"}.get(others[0])
    save = f"pandas.read_csv({path.name!r}, sep=';').to_csv('new-{path.name}', sep={separator!r}, index=False)"
    remedy = f"name it {path.stem}{ending}" if ending else f"write it anew: {save}"
    raise RequestError(
        f"data {str(path)!r}: its columns seem to be separated by {SEPARATORS[others[0]]}, and those of {kind} are by "
        f"{SEPARATORS[separator]}; {remedy}"
    )


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    if table.empty:
        raise RequestError(f"data {str(path)!r} is empty: it has no rows")
    table.columns = [str(name) for name in table.columns]
    return table


def pick_column(
    table: pd.DataFrame, wanted: str | None, names: tuple[str, ...], what: str, path: Path
) -> str:
    """Return the wanted column, or the first of the conventional names that the table has.

    Raises:
        RequestError: there is no such column; those there are named.
    """
    columns = list(table.columns)
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise RequestError(
            f"{what}_column {wanted!r} is not in {str(path)!r}{nearest(wanted, columns)}; columns: {some(columns, 12)}"
        )
    found = find_column(table, names)
    if found is not None:
        return found
    raise RequestError(
        f"{str(path)!r} has no column that is plainly the {what}; name it with {what}_column; "
        f"columns: {some(columns, 12)}"
    )


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the first of the names that the table has, in any case of letters; None if it has none."""
    columns = {column.lower(): column for column in reversed(list(table.columns))}
    return next((columns[name] for name in names if name in columns), None)


def check_texts(values: pd.Series, path: Path) -> list[str]:
    """Return the texts, none of them missing, blank or something else than text.

    Raises:
        RequestError: naming the rows, the first being row 1.
    """
    bad = [
        row
        for row, value in enumerate(values, start=1)
        if not isinstance(value, str) or not value.strip()
    ]
    if bad:
        raise RequestError(
            f"column {values.name!r} of {str(path)!r}: not a text in {len(bad)} of {len(values)} rows "
            f"(row {some(bad)}); allowed is text that is not blank"
        )
    return [str(value) for value in values]


def check_labels(values: pd.Series, path: Path) -> list[str]:
    """Return the labels as names: ``1``, ``1.0`` and ``"1"`` are the same class.

    Raises:
        RequestError: a label is missing, or a number that is not whole; the rows are named.
    """
    names: list[str] = []
    bad: list[int] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        # isinstance(value, float) that is left: a fraction or a missing value (NaN).
        if (
            value is None
            or value is pd.NA
            or isinstance(value, (float, list, dict))
            or not str(value).strip()
        ):
            bad.append(row)
        names.append(str(value))
    if bad:
        raise RequestError(
            f"column {values.name!r} of {str(path)!r}: not a label in {len(bad)} of {len(values)} rows "
            f"(row {some(bad)}); allowed are texts and whole numbers"
        )
    return names


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; of the names and bytes of all files, for a directory; of a hub's rows."""
    if is_hub_id(path):
        table = read_table(path)
        return hashlib.sha256(table.to_json(orient="split").encode()).hexdigest()
    if path.is_dir():
        parts = [
            f"{one.relative_to(path)} {file_fingerprint(one)}"
            for one in sorted(path.rglob("*"))
            if one.is_file()
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def find_text_columns(config: DataConfig, table: pd.DataFrame, path: Path) -> TextColumns:
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
