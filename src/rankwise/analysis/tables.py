"""Results from a table: a row for each result, with columns for the rank and metrics."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from rankwise.analysis.cells import Numbers, read_numbers
from rankwise.analysis.charts import runs_of_chart
from rankwise.analysis.config import Reading
from rankwise.analysis.evaluations import one_evaluation
from rankwise.analysis.names import RUN_NAMES, UNNAMED, bare_name, columns_named, measure_names
from rankwise.analysis.roles import find_ranks, pick_columns
from rankwise.analysis.rows import baseline_note, baseline_rows, finished_rows
from rankwise.analysis.source import ResultsSource
from rankwise.analysis.spreads import read_means
from rankwise.decide.evidence import as_booleans
from rankwise.decide.metrics import find_metrics, snake, split_part
from rankwise.errors import RequestError, nearest, some

STEP_NAMES = (
    "step", "global_step", "train_global_step", "training_iteration", "iteration", "current_steps",
    "epoch", "train_epoch",
)  # fmt: skip
RUN_IDS = ("run_id", "trial_id", *RUN_NAMES)
RUN_NUMBERS = (
    "run_number", "rerun", "repeat", "replicate", "repetition", "number", "trial", *RUN_IDS, "id",
)  # fmt: skip
KEY = ("rank", "seed", "learning_rate", "example_id")


def read_result_table(table: pd.DataFrame, origin: str, reading: Reading) -> ResultsSource:
    """Read a table of results.

    Args:
        table: the rows, numbered from 1.
        origin: name of the file, for messages.
        reading: the columns and the metric that the user named, and what else was said.

    Raises:
        RequestError: it lacks a column for the rank or a metric, gives one column two roles, or
            ``diverged`` holds something other than true and false.
    """
    notes: list[str] = []
    chart = runs_of_chart(table)
    if chart is not None:
        table, note = chart
        notes.append(f"{origin}: {note}")
    everything = len(table)
    table, left_out = finished_rows(table, origin)
    notes += left_out
    if table.empty:
        raise RequestError(f"{origin!r} has no results: none of {everything} runs finished")
    columns, guesses = pick_columns(table, origin, reading)
    ranks, settings = find_ranks(table, columns, origin, reading)
    settings = {"rank": ranks, **settings}
    baselines = baseline_rows(table, ranks)
    if baselines.any():
        notes.append(baseline_note(baselines, ranks[baselines], origin))
        table = table[~baselines]
        settings = {name: values[~baselines] for name, values in settings.items()}
    if table.empty:
        raise RequestError(f"{origin!r} has no results with a LoRA rank; {notes[-1]}")

    numbers = _measures(table, columns)
    metrics = _find_metrics(table, numbers, origin, reading)
    rows = _result_rows(table, columns, metrics, numbers, origin).assign(**settings)
    notes += [*guesses, _what_was_read(table, columns, settings, metrics, numbers, origin)]
    rows, counted = _one_row_a_run(table, rows, metrics, reading)
    notes += [] if counted is None else [f"{origin}: {counted}"]
    kept = table.index.get_indexer(rows.index)
    numbers = {name: each.take(kept) for name, each in numbers.items()}
    distinct = _distinguishing_column(table, rows)
    if reading.seed_column is not None and not np.isfinite(read_numbers(rows["seed"]).values).any():
        # Names of runs: the same name is the same seed.
        rows["seed"] = pd.factorize(rows["seed"])[0]
        notes.append(f"{origin}: each different {columns['seed']!r} is a seed")
    means = read_means(rows, metrics, numbers, reading, origin)
    return ResultsSource(
        origin=origin,
        rows=means.rows,
        metrics=means.metrics,
        notes=(*notes, *means.notes),
        distinguished_by=distinct,
        noise=means.noise,
    )


def _measures(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Numbers]:
    """Return the columns of numbers that have no other role; a column of text alone has none."""
    taken = {*columns.values(), *columns_named(table.columns, ("diverged",))}
    numbers = {name: read_numbers(table[name]) for name in table.columns if name not in taken}
    return {name: each for name, each in numbers.items() if not np.isnan(each.values).all()}


def _find_metrics(
    table: pd.DataFrame, numbers: Mapping[str, Numbers], origin: str, reading: Reading
) -> dict[str, str]:
    """Return the short name of each metric, by its column."""
    asked = reading.metric
    column = next((name for name in numbers if asked in (name, bare_name(name).rest)), None)
    names = measure_names(numbers, column)
    unnamed = columns_named(numbers, UNNAMED)[:1]
    if asked is not None and unnamed and not _is_there(asked, names):
        names[unnamed[0]] = asked
    written: dict[str, str] = {}
    for name, plain in names.items():
        written.setdefault(plain, name)
    found, _ = find_metrics(written, names.get(str(column), asked))
    if asked is None and set(found.values()) == {"train_loss"}:
        raise RequestError(
            f"{origin!r} has no metric but that of training; to compare by it, give --metric "
            f"train_loss (metric); columns: {some(table.columns, 12)}"
        )
    if not found:
        missing = "no column that is plainly a metric; name it with metric"
        for name in unnamed:
            missing += f", or say which metric {name!r} is, such as --metric eval_loss"
        if asked is not None:
            missing = (
                f"no column of numbers for the metric {asked!r}{nearest(asked, table.columns)}"
            )
        raise RequestError(f"{origin!r} has {missing}; columns: {some(table.columns, 12)}")
    return {written[plain]: short for plain, short in found.items()}


def _is_there(asked: str, names: Mapping[str, str]) -> bool:
    spellings = {snake(each) for pair in names.items() for each in pair}
    return snake(asked) in spellings | {split_part(name)[1] for name in spellings}


def _result_rows(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    metrics: Mapping[str, str],
    numbers: Mapping[str, Numbers],
    origin: str,
) -> pd.DataFrame:
    """Return the table with its roles' and metrics' short names."""
    names = {"example": "example_id"}
    roles = {names.get(role, role): table[column] for role, column in columns.items()}
    rows = pd.DataFrame(roles, index=table.index)
    rows["diverged"] = False
    for column in columns_named(table.columns, ("diverged",))[:1]:
        rows["diverged"] = as_booleans(table[column], partial(_refuse, origin))
    for written, name in metrics.items():
        values = numbers[written].values
        known = np.isfinite(values) | table[written].isna().to_numpy()
        # A cell that is no number is kept as it is, so that the refusal can show it.
        rows[name] = values if known.all() else table[written].astype(object).where(~known, values)
    return rows


def _what_was_read(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    settings: Mapping[str, object],
    metrics: Mapping[str, str],
    numbers: Mapping[str, Numbers],
    origin: str,
) -> str:
    """Say which column gave what, and which columns are left out."""
    used = [f"{role} from {column!r}" for role, column in columns.items()]
    used += [f"{name} from {columns['rank']!r}" for name in settings if name not in columns]
    used += [f"{name} from {written!r}" for written, name in metrics.items()]
    taken = {*columns.values(), *metrics, *columns_named(table.columns, ("diverged",))}
    unused = [column for column in table.columns if column not in taken]
    omitted = f"; left out {some(unused, 8)}" if unused else ""
    percent = [repr(name) for name in metrics if numbers[name].is_percent]
    shares = f"; 54% in {', '.join(percent)} is read as 0.54" if percent else ""
    return f"{origin}: read {', '.join(used)}{omitted}{shares}"


def _one_row_a_run(
    table: pd.DataFrame, rows: pd.DataFrame, metrics: Mapping[str, str], reading: Reading
) -> tuple[pd.DataFrame, str | None]:
    """Keep the evaluation of each run that counts, where the table has one for each step."""
    ids = {f"id {name}": table[name] for name in columns_named(table.columns, RUN_IDS)}
    for step in columns_named(table.columns, STEP_NAMES):
        steps = read_numbers(table[step]).values
        if not np.isfinite(steps).all():
            continue
        runs = [*(name for name in KEY if name in rows), *ids]
        kept, note = one_evaluation(rows.assign(step=steps, **ids), metrics, runs, reading)
        if note is not None:
            return kept[rows.columns], note
    return rows, None


def _distinguishing_column(table: pd.DataFrame, rows: pd.DataFrame) -> str | None:
    """Return a column that distinguishes rows of the same rank, seed and learning rate, if any."""
    key = [name for name in KEY if name in rows]
    for name in columns_named(table.columns, RUN_NUMBERS):
        if (
            rows.duplicated(key).any()
            and not rows.assign(id=table[name]).duplicated([*key, "id"]).any()
        ):
            return name
    return None


def _refuse(origin: str, values: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Refuse a column with bad values; name the column, the file and the rows."""
    bad = values[~good]
    if len(bad):
        found = f"{some(bad.astype(str).unique())} in {len(bad)} rows (row {some(bad.index)})"
        column = f"column {values.name!r} of {origin!r}"
        raise RequestError(f"{column}: {found}; allowed are {allowed}")
