"""A trial's directory as Ray Tune writes it.

``params.json`` holds the trial's config; ``result.json`` a JSON object on each line, with the
reported values, ``training_iteration`` and the config; ``progress.csv`` the same values as a table.
A trial that failed has ``error.txt``. The experiment's directory holds ``experiment_state-*.json``,
whose ``trial_data`` are pairs of JSON texts, with ``status`` and ``relative_logdir`` in the first.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.source import read_json_lines

PARAMS, RESULTS, PROGRESS = "params.json", "result.json", "progress.csv"
FINISHED = "TERMINATED"


def is_trial(directory: Path) -> bool:
    """Return whether a directory is that of a trial."""
    return (directory / PARAMS).is_file() and any(
        (directory / name).is_file() for name in (RESULTS, PROGRESS, "error.txt")
    )


def trial_state(directory: Path) -> str:
    """Return a trial's state, FINISHED where nothing says otherwise."""
    if (directory / "error.txt").is_file():
        return "ERROR"
    return _states(directory.parent).get(directory.name, FINISHED)


def trial_rows(directory: Path) -> list[dict[str, Any]]:
    """Return the values that a trial reported, one row a report; nested names joined by "/"."""
    results = directory / RESULTS
    if results.is_file() and results.stat().st_size:
        return [_flat(row) for row in read_json_lines(results)]
    progress = directory / PROGRESS
    if progress.is_file() and progress.stat().st_size:
        rows = pd.read_csv(progress).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in rows]
    return []


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {} if name == "config" else _flat(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@cache
def _states(experiment: Path) -> dict[str, str]:
    """Return the state of each trial in an experiment by its directory's name."""
    files = sorted(experiment.glob("experiment_state-*.json"))
    states: dict[str, str] = {}
    with suppress(Exception):  # of another version; the trials' own files say enough
        content = json.loads(files[-1].read_text(encoding="utf-8")) if files else {}
        for trial, _ in content.get("trial_data", ()):
            record = json.loads(trial)
            states[Path(str(record.get("relative_logdir"))).name] = str(record.get("status"))
    return states
