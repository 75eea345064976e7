"""Results from a table: CSV, TSV, JSON lines or Parquet, with columns for rank and metrics."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.analysis.source import ResultsSource
from rankwise.decide.evidence import as_booleans, as_measures
from rankwise.decide.metrics import find_metrics
from rankwise.errors import RequestError, nearest, some
from rankwise.tasks.readers import Table, read_table

# Conventional column names of each role, in lower case; the most explicit first.
COLUMN_NAMES = {
    "rank": ("rank", "lora_rank", "lora_r", "r"),
    "seed": ("seed", "random_seed"),
    "learning_rate": ("learning_rate", "lr"),
    "example": ("example_id", "sample_id", "example", "sample", "id", "idx", "index"),
}


def read_result_table(
    path: Path, wanted: Mapping[str, str | None], metric: str | None = None
) -> ResultsSource:
    """Read a table of results.

    Args:
        path: path of the file; its ending tells the format.
        wanted: column of each role in COLUMN_NAMES; None to look for a conventional name.
        metric: a metric to look for, besides those with known names.

    Raises:
        RequestError: the file cannot be read, lacks a column for the rank or a metric, gives one
            column two roles, or ``diverged`` holds something other than true and false.
    """
    table = read_table(path).rows
    table.index = pd.RangeIndex(1, len(table) + 1)
    columns, notes = _pick_columns(table, wanted, path)
    diverged_column = Table(table, path).find_column(("diverged",))
    taken = {*columns.values(), diverged_column}
    rest = [column for column in table.columns if column not in taken]
    values = {column: as_measures(table[column]) for column in rest}
    # A column of text alone is no metric; text in a column of numbers is refused later.
    numbers = {column: each for column, each in values.items() if not np.isnan(each).all()}
    metrics, _ = find_metrics(numbers, metric)
    if not metrics:
        missing = "no column that is plainly a metric; name it with metric"
        if metric is not None:
            hint = nearest(metric, table.columns)
            missing = f"no column of numbers for the metric {metric!r}{hint}"
        raise RequestError(f"{str(path)!r} has {missing}; columns: {some(table.columns, 12)}")

    names = {"example": "example_id"}
    roles = {names.get(role, role): table[column] for role, column in columns.items()}
    rows = pd.DataFrame(roles, index=table.index)
    rows["diverged"] = False
    if diverged_column is not None:
        rows["diverged"] = as_booleans(table[diverged_column], partial(_refuse, path))
    for written, name in metrics.items():
        rows[name] = numbers[written]
    used = [f"{role} from {column!r}" for role, column in columns.items()]
    used += [f"{name} from {written!r}" for written, name in metrics.items()]
    left_out = [column for column in rest if column not in metrics]
    omitted = f"; left out {some(left_out, 8)}" if left_out else ""
    notes.append(f"{path.name}: read {', '.join(used)}{omitted}")
    return ResultsSource(origin=path.name, rows=rows, metrics=metrics, notes=tuple(notes))


def _pick_columns(
    table: pd.DataFrame, wanted: Mapping[str, str | None], path: Path
) -> tuple[dict[str, str], list[str]]:
    """Return the column of each role that the table has, and notes on columns left out."""
    columns: dict[str, str] = {}
    for role, column in wanted.items():
        if column is None:
            continue
        for other, taken in columns.items():
            if column == taken:
                both = f"{other}_column and {role}_column"
                raise RequestError(f"{both} are both {column!r}; name two columns")
        columns[role] = Table(table, path).pick_column(column, (), role)
    for role, names in COLUMN_NAMES.items():
        if role in columns:
            continue
        free = Table(table.drop(columns=list(columns.values())), path)
        if role == "rank" or free.find_column(names) is not None:
            columns[role] = free.pick_column(None, names, role)
    example = columns.get("example")
    if example is None or wanted["example"] is not None or not table[example].astype(str).is_unique:
        return columns, []
    # The same held-out examples occur at every rank, so ids that never repeat are row numbers.
    del columns["example"]
    note = f"{example!r} is left out: its values never repeat, so they are not example ids"
    return columns, [f"{path.name}: {note}"]


def _refuse(path: Path, values: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Refuse a column with bad values; name the column, the file and the rows."""
    bad = values[~good]
    if len(bad):
        found = f"{some(bad.astype(str).unique())} in {len(bad)} rows (row {some(bad.index)})"
        column = f"column {values.name!r} of {str(path)!r}"
        raise RequestError(f"{column}: {found}; allowed are {allowed}")
