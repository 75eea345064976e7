"""Labels as people keep them: rows without one, and rows with several."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rankwise.errors import RequestError, shown
from rankwise.tasks.readers import Table

NO_LABEL = {"", "unlabelled", "unlabeled", "null", "nan", "<na>"}
"""Labels that mean none, in lower case."""
CLASS_LABEL_NONE = "-1"  # what a ClassLabel of datasets has for an example without a label
LIST_BRACKETS = ("[", "(", "{")
NUMPY_LIST = re.compile(r"\[\s*(-?[\d.]+(e-?\d+)?\s*|'[^']*'\s*)*\]")  # as numpy prints an array
SEPARATORS = {",": "commas", ";": "semicolons", "|": "'|'"}
ONE_HOT = re.compile(r"[01]([ ,;|]+[01])+")


def keep_labelled(table: Table, column: str, numbers: bool = False) -> tuple[Table, list[str]]:
    """Return the rows that have a label, and a note that counts the others.

    Labels that are missing, blank or say so are left out, and so is -1 where it is no class of its
    own.

    Args:
        table: rows of a data file.
        column: name of the column of labels.
        numbers: whether the labels are numbers to predict, so that -1 is one.

    Raises:
        RequestError: no row has a label, or it is not clear whether -1 is one.
    """
    names = [_spelling(value) for value in table.cells(column)]
    missing = set(NO_LABEL)
    if not numbers and _is_no_class(set(names) - missing, table, column):
        missing.add(CLASS_LABEL_NONE)
    is_labelled = [name not in missing for name in names]
    left_out = len(names) - sum(is_labelled)
    if not left_out:
        return table, []
    kinds = sorted({name or "blank" for name in names if name in missing})
    counted = f"{left_out} of {len(names)} rows have no label in column {column!r}"
    spelt = f"{counted} ({', '.join(kinds)})"
    if left_out == len(names):
        raise RequestError(f"data {str(table.path)!r}: {spelt}; give data with labels")
    return replace(table, rows=table.rows[is_labelled]), [f"{spelt} and are left out"]


def refuse_label_sets(table: Table, column: str) -> None:
    """Refuse a column that holds several labels a row, in any spelling."""
    values = table.cells(column)
    spelling = _set_spelling(values)
    if spelling is None:
        return
    row, what = spelling
    example = shown(values.iloc[row])
    raise RequestError(
        f"column {column!r} of {str(table.path)!r} holds {what}, such as {example} in row "
        f"{table.rows.index[row] + 1}: several labels a row (multi-label) are not supported; give "
        "a column with one label a row, such as yes or no for each label in turn"
    )


def _spelling(value: Any) -> str:
    """Return a label in lower case, to find those that mean none; empty if it is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def _is_no_class(names: set[str], table: Table, column: str) -> bool:
    """Whether -1 among the labels means that there is none."""
    if CLASS_LABEL_NONE not in names:
        return False
    others = names - {CLASS_LABEL_NONE}
    numbers = sorted(int(name) for name in others if re.fullmatch(r"-?\d{1,9}", name))
    if len(numbers) < len(others):
        return True  # names of classes, which no number is
    if not numbers or numbers[0] < 0 or numbers == [1]:
        return not numbers  # a scale such as -2 to 2, or a sign
    is_index = numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] in (0, 1)
    if is_index and len(numbers) > 2:
        return True
    if not is_index:
        return False
    raise RequestError(
        f"column {column!r} of {str(table.path)!r} has the labels -1, "
        f"{', '.join(map(str, numbers))}: -1 may be a class, or mean that there is no label; "
        f"replace it: with a name, such as 'negative', if it is a class, or with 'unlabelled'"
    )


def _set_spelling(values: Iterable[Any]) -> tuple[int, str] | None:
    """Return the position of a cell with a set of labels, and the sets' spelling; None if none."""
    texts = []
    for row, value in enumerate(values):
        cell = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(cell, str):
            texts.append((row, cell.strip()))
            cell = _parse_list(cell.strip())
        if isinstance(cell, (list, tuple, set, dict)) and len(cell):
            flags = cell.values() if isinstance(cell, dict) else cell
            one_hot = len(cell) > 1 and all(flag in (0, 1) for flag in flags)
            return row, "vectors of 0 and 1" if one_hot else "lists of labels"
    rows = {text: row for row, text in reversed(texts)}
    if rows and all(ONE_HOT.fullmatch(text) for text in rows):
        return texts[0][0], "vectors of 0 and 1"
    for separator, name in SEPARATORS.items():
        sets = _separated_sets(rows, separator)
        if sets:
            return min(rows[text] for text in sets), f"labels separated by {name}"
    return None


def _parse_list(text: str) -> Any:
    """Return the list that a text spells in JSON, in Python or as numpy does; None if none."""
    if not text.startswith(LIST_BRACKETS):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if text.endswith("]") and (NUMPY_LIST.fullmatch(text) or "," in text):
        return [word for word in re.split(r"[\s,]+", text.strip("[]")) if word]
    return None


def _separated_sets(texts: Mapping[str, int], separator: str) -> list[str]:
    """Return the labels that are plainly sets of others; none if that is not plain.

    At least half of the labels with the separator have no part that is theirs alone, and also a
    part is a label by itself, two labels differ in order only, or there are few parts.
    """
    parts = {text: frozenset(part.strip() for part in text.split(separator)) for text in texts}
    joined = {text: found for text, found in parts.items() if len(found) > 1}
    count = Counter(part for found in parts.values() for part in found)
    sets = [text for text, found in joined.items() if all(count[part] > 1 for part in found)]
    members = {part for found in joined.values() for part in found}
    alone = any(part in texts for part in members)
    is_plain = alone or len(set(joined.values())) < len(joined) or len(members) < len(joined)
    return sets if is_plain and 2 * len(sets) >= len(joined) else []
