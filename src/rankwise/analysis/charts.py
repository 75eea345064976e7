"""The wide table that W&B exports from a chart: a column for each run, a row for each step."""

import pandas as pd

SEPARATOR = " - "
RUN, STEP = "run", "step"


def runs_of_chart(table: pd.DataFrame) -> tuple[pd.DataFrame, str] | None:
    """Return a chart's table with one row for each run and step, and a note; None for others.

    The columns are the horizontal axis (``Step``), and for each run ``NAME - METRIC`` with
    ``NAME - METRIC__MIN`` and ``NAME - METRIC__MAX``, the range over the runs of a group or over
    the steps that share a point.
    """
    columns = [str(name) for name in table.columns]
    lines = [name for name in columns if SEPARATOR in name and f"{name}__MIN" in columns]
    if not lines:
        return None
    runs: dict[str, dict[str, str]] = {}
    for name in lines:
        run, _, metric = name.rpartition(SEPARATOR)
        runs.setdefault(run, {})[metric] = name
    axis = next(name for name in columns if SEPARATOR not in name)
    frames = []
    for run, metrics in runs.items():
        values = {metric: table[name] for metric, name in metrics.items() if metric != "_step"}
        frames.append(pd.DataFrame({RUN: run, STEP: table[axis], **values}))
    joined = pd.concat(frames, ignore_index=True)
    measured = joined.columns.difference([RUN, STEP])
    joined = joined.dropna(subset=list(measured), how="all").reset_index(drop=True)
    note = (
        f"read a chart of {len(runs)} runs over {axis!r}; the columns __MIN and __MAX are left out"
    )
    return joined.set_axis(pd.RangeIndex(1, len(joined) + 1)), note
