"""Which evaluation of a run counts: the one whose checkpoint was kept, the best, or the last."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankwise.analysis.config import Reading
from rankwise.analysis.source import step_of
from rankwise.decide.evidence import is_number
from rankwise.decide.metrics import higher_is_better, is_held_out
from rankwise.errors import RequestError


def kept_step(state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step of the best checkpoint that a Trainer kept; None if it kept none.

    ``trainer_state.json`` names it as ``best_global_step``, in older versions only in the path
    ``best_model_checkpoint``, or by the value ``best_metric``. The log must hold an evaluation of
    that step.
    """
    evaluated = {
        step_of(row, number): row
        for number, row in enumerate(rows, start=1)
        if any(is_held_out(name) for name in row)
    }
    step = state.get("best_global_step")
    if not is_number(step):
        match = re.search(r"checkpoint-(\d+)/?$", str(state.get("best_model_checkpoint")))
        step = int(match[1]) if match else None
    if step is None and is_number(state.get("best_metric")):
        values = {number: row.values() for number, row in evaluated.items()}
        step = next((at for at, row in values.items() if state["best_metric"] in row), None)
    return int(step) if step in evaluated else None


def best_step(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], reading: Reading
) -> int | None:
    """Return the step with the best value of the metric to compare by."""
    written, metric = next(iter(_compared(metrics, reading).items()))
    values = {
        step_of(row, number): float(row[written])
        for number, row in enumerate(rows, start=1)
        if is_number(row.get(written)) and np.isfinite(row[written])
    }
    if not values:
        return None
    pick = max if goes_up(metric, reading) else min
    return pick(values, key=lambda step: values[step])


def until(rows: Sequence[Mapping[str, Any]], step: int) -> list[Mapping[str, Any]]:
    """Return the rows of a log up to a step."""
    return [row for number, row in enumerate(rows, start=1) if step_of(row, number) <= step]


def goes_up(metric: str, reading: Reading) -> bool:
    """Whether more of a metric is better.

    Raises:
        RequestError: neither its name nor the user says so.
    """
    known = reading.higher_is_better
    known = higher_is_better(metric) if known is None else known
    if known is None:
        raise RequestError(f"metric {metric!r} has no known direction; state higher_is_better")
    return known


def one_evaluation(
    rows: pd.DataFrame, metrics: Mapping[str, str], runs: list[str], reading: Reading
) -> tuple[pd.DataFrame, str | None]:
    """Keep one row for each run of a table that holds a log, with a row for each step.

    Args:
        rows: a column ``step`` besides the metrics and the columns that distinguish runs.
        metrics: short names by written ones.
        runs: the columns that distinguish runs.
        reading: says which evaluation counts, by default the last.

    Returns:
        The rows, and a note; all rows and None where they are not those of a log.
    """
    if not rows.duplicated(runs).any() or rows.duplicated([*runs, "step"]).any():
        return rows, None
    names = list(metrics.values())
    metric = next(iter(_compared(metrics, reading).values()))
    ordered = rows.sort_values("step", kind="stable")
    ordered[names] = ordered.groupby(runs, dropna=False, sort=False)[names].ffill()
    evaluated = ordered[rows[metric].reindex(ordered.index).notna()]
    groups = evaluated.groupby(runs, dropna=False, sort=False)
    if reading.evaluation == "best":
        values = groups[metric]
        kept = values.idxmax() if goes_up(metric, reading) else values.idxmin()
    else:
        kept = groups["step"].idxmax()
    chosen = ordered.loc[sorted(kept)]
    steps = chosen["step"]
    reached = f"step {steps.min():g}" if steps.nunique() == 1 else (
        f"steps {steps.min():g} to {steps.max():g}, not the same"
    )  # fmt: skip
    which = reading.evaluation or "last"
    missing = rows.groupby(runs, dropna=False).ngroups - len(chosen)
    lacking = f"; {missing} runs without one are left out" if missing else ""
    return chosen, f"the {which} evaluation of each run counts ({reached}){lacking}"


def _compared(metrics: Mapping[str, str], reading: Reading) -> dict[str, str]:
    """Return the metrics with the one to compare by first."""
    first = [
        (written, metric)
        for written, metric in metrics.items()
        if reading.metric is not None and reading.metric in (written, metric)
    ]
    return dict([*first, *metrics.items()])
