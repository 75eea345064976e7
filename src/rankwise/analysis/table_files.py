"""Tables of results as files, also those nested in the cells or in the header of a table."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, reading
from rankwise.tasks.files import FORMATS
from rankwise.tasks.readers import read_table


def read_rows(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a file with a row for each result, and notes on how it was read.

    Nested records become columns with dotted names.

    Raises:
        RequestError: the file cannot be read or has no rows.
    """
    table = read_table(path)
    return _checked(flat_header(table.rows), path), list(table.notes)


def read_json(path: Path) -> Any:
    """Read a JSON file; a file of JSON lines, which Ray Tune calls .json, becomes a list.

    NaN and Infinity are numbers, as Python writes them.
    """
    with reading(f"{str(path)!r} cannot be read as JSON"):
        text = path.read_text(encoding="utf-8-sig")
        try:
            return json.loads(text)
        except ValueError:
            lines = [line for line in text.splitlines() if line.strip()]
            if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
                raise
            return [json.loads(line) for line in lines]


def records_in(content: Any, path: Path) -> pd.DataFrame:
    """Return the records in a JSON file as a table.

    They are a list, a list under the only name that holds one, or columns as pandas writes them.
    """
    if isinstance(content, Mapping):
        lists = [value for value in content.values() if _is_records(value)]
        if len(lists) == 1:
            content = lists[0]
        elif {"columns", "data"} <= content.keys():  # pandas, orient="split"
            content = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
        elif content and all(isinstance(value, dict | list) for value in content.values()):
            content = _columns(content)
    if not _is_records(content):
        raise RequestError(
            f"{str(path)!r} holds no results; allowed are a list of records, a result of PEFT's "
            "method comparison or of lm-eval-harness, the files of a run, and tables that end in "
            f"{', '.join(FORMATS)}"
        )
    return _checked(pd.DataFrame(content), path)


def flat_header(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose second line names its columns too, as pandas writes them, with one.

    ``DataFrame.groupby(...).agg`` and Optuna's ``trials_dataframe(multi_index=True)`` give such
    tables; the names of both lines are joined by a dot.
    """
    if len(rows) < 2:
        return rows
    first = rows.iloc[0]
    doubled = [name for name in rows.columns if re.sub(r"\.\d+$", "", name) != name]
    named = [name for name in rows.columns if isinstance(first[name], str)]
    blank = [name for name in rows.columns if pd.isna(first[name])]
    if not doubled or len(named) + len(blank) < len(rows.columns) or not set(doubled) <= set(named):
        return rows
    names = {name: f"{re.sub(r'[.][0-9]+$', '', name)}.{first[name]}" for name in named}
    body = rows.iloc[1:]
    # The third line of a grouped table names the column of groups.
    if body.iloc[0].notna().sum() == 1 and isinstance(group := body.iloc[0, 0], str):
        names[rows.columns[0]] = group
        body = body.iloc[1:]
    typed = {name: _as_typed(body[name]) for name in body.columns}
    return pd.DataFrame(typed).rename(columns=names).reset_index(drop=True)


def unnested(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which records in cells, also those spelled out as text, are columns."""
    parts = []
    for name in rows.columns:
        cells = _records_of_cells(rows[name])
        if cells is None:
            parts.append(rows[[name]])
            continue
        inner = pd.json_normalize(cells)
        parts.append(inner.set_axis(rows.index).add_prefix(f"{name}."))
    return pd.concat(parts, axis=1) if parts else rows


def _checked(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    if rows.empty:
        raise RequestError(f"data {str(path)!r} is empty: it has no rows")
    rows.columns = [str(name) for name in rows.columns]
    rows = unnested(rows)
    rows.columns = [str(name) for name in rows.columns]
    return rows.set_axis(pd.RangeIndex(1, len(rows) + 1))


def _is_records(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(row, dict) for row in content)
    )


def _columns(content: Mapping[str, Any]) -> Any:
    """Return columns of equal length, or records under the names of runs, as a list of records."""
    inner = [value for value in content.values() if isinstance(value, dict)]
    if len(inner) == len(content) and not all(name.isdecimal() for each in inner for name in each):
        return [{"run": run, **record} for run, record in content.items()]
    columns = {name: list(values.values()) if isinstance(values, dict) else values
               for name, values in content.items()}  # fmt: skip
    if len({len(values) for values in columns.values()}) != 1:
        return None
    return pd.DataFrame(columns).to_dict("records")


def _records_of_cells(column: pd.Series) -> list[dict[str, Any]] | None:
    """Return the records in a column's cells, {} for an empty cell; None if it holds others."""
    present = column[column.notna()]
    if present.empty or not str(present.iloc[0]).lstrip().startswith("{"):
        return None
    records = [
        {} if cell is None else _as_record(cell) for cell in column.where(column.notna(), None)
    ]
    return None if any(record is None for record in records) else [one or {} for one in records]


def _as_record(cell: Any) -> dict[str, Any] | None:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            try:  # Python's repr, as a table of dictionaries saves them; it spells NaN nan
                cell = ast.literal_eval(re.sub(r"(?<=: )(nan|-?inf)\b", "None", cell))
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                return None
    return cell if isinstance(cell, dict) else None


def _as_typed(column: pd.Series) -> pd.Series:
    """Return a column of texts as numbers, if all of them are."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if (numbers.notna() == column.notna()).all() else column
