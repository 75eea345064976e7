"""Tables in CSV and its relatives: their separator, quotes and decimal commas."""

import csv
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pandas as pd

from rankwise.errors import RequestError

SEPARATORS = {",": "','", "\t": "tabs", ";": "';'", "|": "'|'"}
# Ways to write quotes, and what is said of them; the first that fits all records is used.
USUAL_QUOTES: Mapping[str, Any] = {}
OTHER_QUOTES: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({"escapechar": "\\"}, "quotes inside texts follow a backslash"),
    ({"skipinitialspace": True}, "blanks after a separator are skipped"),
    ({"quoting": csv.QUOTE_NONE}, "quotes are read as they stand"),
)
SAMPLE_ROWS = 6  # records that must agree on the number of columns
SAMPLE_LENGTH = 1 << 20  # characters
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\r?\n', re.IGNORECASE)  # Excel's own first line


def read_csv_text(text: str, place: str, expected: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a table with a line of column names, and notes on how it was read.

    pandas reads it, as the CSV builder of datasets does. The builder itself is not used, because
    it takes the type of a column from its first 10,000 rows.

    Args:
        text: the whole table.
        place: name of the file in messages.
        expected: separator that the file's ending implies; another is used where it alone fits.

    Raises:
        RequestError: a quote or the number of fields in a line is wrong; the message names it.
    """
    notes = []
    mark = SEPARATOR_LINE.match(text)
    separator = find_separator(text, expected) or expected
    first_line = 1
    if mark:
        text, separator, first_line = text[mark.end() :], mark[1], 2
    if separator != expected:
        notes.append(f"columns are separated by {SEPARATORS[separator]}")
    quotes = USUAL_QUOTES
    if fault := _find_fault(text, separator, quotes, first_line):
        others = OTHER_QUOTES if separator == "\t" else OTHER_QUOTES[:-1]
        fitting = (each for each in others if not _find_fault(text, separator, each[0], 1))
        quotes, note = next(fitting, (quotes, ""))
        if not note:
            raise RequestError(f"{place}: {fault}")
        notes.append(note)
    decimal = "."
    if separator != "," and _has_decimal_commas(text, separator):
        decimal = ","
        notes.append("numbers have decimal commas")
    # low_memory=False: one type for a whole column, so that a text of digits stays a text.
    rows = pd.read_csv(
        TextFile(text),  # type: ignore[call-overload]
        sep=separator,
        decimal=decimal,
        keep_default_na=False,
        na_values=[""],
        low_memory=False,
        **quotes,
    )
    header = next(_records(text, separator, quotes))[1] or []
    for name in sorted({name for name in header if name and header.count(name) > 1}):
        notes.append(f"column {name!r} occurs again, and is called {name + '.1'!r} there")
    return rows, notes


class TextFile:
    """A text as a file that pandas reads; a StringIO would hold four bytes a character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def read(self, size: int = -1) -> str:
        """Return the next characters, at most ``size``, or all that are left."""
        start, end = self._place, len(self._text)
        if size >= 0:
            end = min(end, start + size)
        self._place = end
        return self._text[start:end]

    def __iter__(self) -> Iterator[str]:
        return (line[0] for line in LINE.finditer(self._text))


def pandas_arguments(text: str, expected: str) -> str:
    """Return what `pandas.read_csv` needs to know of a table, as it is written in a call."""
    separator = find_separator(text, expected) or expected
    arguments = "" if separator == "," else f", sep={separator!r}"
    if separator != "," and _has_decimal_commas(text, separator):
        arguments += ", decimal=','"
    return arguments


def find_separator(text: str, expected: str) -> str | None:
    """Return the separator that gives the first records equally many columns, at least two.

    That is the expected one if it fits, or else the one with most columns; None if none fits.
    """
    columns: dict[str, int] = {}
    for separator in SEPARATORS:
        records = _records(text[:SAMPLE_LENGTH], separator, USUAL_QUOTES)
        sizes = {len(fields or ()) for _, fields in islice(records, SAMPLE_ROWS)}
        if len(sizes) == 1 and max(sizes) > 1:
            columns[separator] = max(sizes)
    if expected in columns:
        return expected
    return max(columns, key=lambda separator: columns[separator], default=None)


def _records(
    text: str, separator: str, quotes: Mapping[str, Any]
) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the first line and the fields of each record that is not blank.

    A record with a wrong quote comes last, with None for its fields.
    """
    reader = csv.reader(TextFile(text), delimiter=separator, strict=True, **quotes)
    limit = csv.field_size_limit()
    start = 1
    while True:
        csv.field_size_limit(max(limit, len(text)))
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield start, None
            return
        finally:
            csv.field_size_limit(limit)
        if fields:
            yield start, fields
        start = reader.line_num + 1


def _find_fault(
    text: str, separator: str, quotes: Mapping[str, Any], first_line: int
) -> str | None:
    """Return what is wrong in the first bad record, with its line; None if all are good."""
    width = None
    for start, fields in _records(text, separator, quotes):
        line = start + first_line - 1
        if fields is None:
            return (
                f"the record in line {line} has a double quote too many or too few; a quote "
                'inside a quoted text is written twice ("")'
            )
        width = width or len(fields)
        if len(fields) > width:
            return (
                f"line {line} has {len(fields)} fields, and the line of names {width}; put "
                f"texts that hold {SEPARATORS[separator]} in double quotes"
            )
    return None


def _has_decimal_commas(text: str, separator: str) -> bool:
    edge = re.escape(separator)
    return re.search(rf'(^|{edge})"?[+-]?\d*,\d+"?({edge}|\r?$)', text, re.MULTILINE) is not None
