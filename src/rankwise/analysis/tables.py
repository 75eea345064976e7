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

# Conventional names, in lower case, the plainest first.
ROLES = {
    "rank": ("rank", "lora_rank", "lora_r", "r"),
    "seed": ("seed", "random_seed"),
    "learning_rate": ("learning_rate", "lr"),
    "example": ("example_id", "sample_id", "example", "sample", "id", "idx", "index"),
}
ROLE_COLUMNS = {
    "example": "example_id"
}  # where the column of the evidence is not called as its role


def read_result_table(
    path: Path, wanted: Mapping[str, str | None], metric: str | None = None
) -> ResultsSource:
    """Read a table of results.

    Args:
        path: of the file; its ending says the format.
        wanted: the column of each role in ROLES, None to go by conventional names.
        metric: a metric to look for beside those known by name.

    Raises:
        RequestError: the file cannot be read, has no column for the rank or for a metric, a column is named for two
            roles, or ``diverged`` holds something else than true and false.
    """
    table = read_table(path).rows
    table.index = pd.RangeIndex(1, len(table) + 1)
    notes: list[str] = []
    columns = _pick_columns(table, wanted, path, notes)
    divergence = next((column for column in table.columns if column.lower() == "diverged"), None)
    rest = [column for column in table.columns if column not in {*columns.values(), divergence}]
    numbers = {column: as_measures(table[column]) for column in rest}
    # Text such as "n/a" in a column of numbers is a bad value, reported later; a column of text only is no metric.
    numbers = {column: values for column, values in numbers.items() if not np.isnan(values).all()}
    names, _ = find_metrics(numbers, metric)
    if not names:
        missing = "no column that is plainly a metric; name it with metric"
        if metric is not None:
            missing = (
                f"no column of numbers for the metric {metric!r}{nearest(metric, table.columns)}"
            )
        raise RequestError(f"{str(path)!r} has {missing}; columns: {some(table.columns, 12)}")

    rows = pd.DataFrame(
        {ROLE_COLUMNS.get(role, role): table[column] for role, column in columns.items()}
    )
    rows["diverged"] = (
        False if divergence is None else as_booleans(table[divergence], partial(_refuse, path))
    )
    for written, own in names.items():
        rows[own] = numbers[written]
    read = [
        f"{own} from {name!r}"
        for own, name in (*columns.items(), *((own, name) for name, own in names.items()))
    ]
    left_out = [column for column in rest if column not in names]
    notes.append(
        f"{path.name}: read {', '.join(read)}"
        + (f"; left out {some(left_out, 8)}" if left_out else "")
    )

    return ResultsSource(origin=path.name, rows=rows, names=names, notes=tuple(notes))


def _pick_columns(
    table: pd.DataFrame, wanted: Mapping[str, str | None], path: Path, notes: list[str]
) -> dict[str, str]:
    """Return the column of each role that the table has."""
    columns = {
        role: Table(table, path).pick_column(name, (), role)
        for role, name in wanted.items()
        if name is not None
    }
    for role, column in columns.items():
        twice = [other for other, name in columns.items() if name == column and other != role]
        if twice:
            raise RequestError(
                f"{role}_column and {twice[0]}_column are both {column!r}; name two columns"
            )
    for role, names in ROLES.items():
        free = table.drop(columns=list(columns.values()))
        if role not in columns and (
            role == "rank" or any(column.lower() in names for column in free.columns)
        ):
            columns[role] = Table(free, path).pick_column(None, names, role)
    example = columns.get("example")
    if example is not None and wanted["example"] is None and table[example].astype(str).is_unique:
        # Held-out examples are the same ones at every rank; numbers that never repeat count the table's rows.
        notes.append(
            f"{path.name}: {example!r} is left out: its values never repeat, so it is no example id"
        )
        del columns["example"]
    return columns


def _refuse(path: Path, values: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Refuse values, naming column, file and rows."""
    bad = values[~good]
    if len(bad):
        raise RequestError(
            f"column {values.name!r} of {str(path)!r}: {some(bad.astype(str).unique())} in {len(bad)} rows "
            f"(row {some(bad.index)}); allowed are {allowed}"
        )
