"""The report: one self-contained page, rebuilt from what a sweep directory holds."""

from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError
from rankwise.formatting import (
    interval,
    is_share,
    limits,
    plain_bytes,
    seconds,
    share,
    signed,
    training_time,
)
from rankwise.report import figures as plots
from rankwise.store.directory import read_evidence, read_json, read_summaries, write_whole


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a sweep directory and return its path.

    Raises:
        RequestError: there is no finished sweep in the directory.
        RankwiseError: the report cannot be written.
    """
    import jinja2

    decision, sweep = read_json(directory / "decision.json"), read_json(directory / "sweep.json")
    if decision is None or sweep is None:
        missing = "decision.json" if sweep is not None else "sweep.json"
        raise RequestError(f"{str(directory)!r} holds no finished sweep: it has no {missing}")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankwise.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        bytes=plain_bytes, seconds=seconds, signed=signed, interval=interval, share=share
    )
    trials, evidence = read_summaries(directory), read_evidence(directory)
    score = sweep["task"]["score"]
    page = environment.get_template("report.html.j2").render(
        decision=decision,
        training_time=training_time(decision["table"]),
        sweep=sweep,
        trials=_trial_rows(trials),
        plots=plots.draw(decision, evidence, sweep["task"]["loss"], score),
        percent=is_share(score),
        losses=limits("loss", [row["loss_mean"] for row in decision["table"]]),
        scores=limits(score, [row["score_mean"] for row in decision["table"]]),
        paired=plots.PAIRED,
        at_rates=plots.AT_RATES,
        plotly=plots.library(),
    )
    path = directory / "report.html"
    write_whole(path, page.encode())
    return path


def _trial_rows(trials: pd.DataFrame) -> list[dict[str, Any]]:
    rows = trials.sort_values(["rank", "learning_rate", "seed"]).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
