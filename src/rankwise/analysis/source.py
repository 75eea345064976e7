"""Results from a single source, before several sources are joined, and helpers to read logs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rankwise.decide.evidence import ChanceLoss, is_number
from rankwise.decide.wording import PLAIN, Wording
from rankwise.errors import RequestError, reading
from rankwise.store.records import TrialRecord

# Settings that can change results as much as the rank does. Runs that differ in them do not
# compare ranks alone.
SETTINGS = (
    "peft_type", "target_modules", "use_rslora", "use_dora", "init_lora_weights", "lora_dropout",
    "bias", "modules_to_save", "rank_pattern", "layers_to_transform", "optimizer_type", "optim",
    "lr_scheduler", "lr_scheduler_type", "lr_schedule", "max_steps", "num_epochs",
    "num_train_epochs", "epochs", "batch_size", "per_device_train_batch_size", "weight_decay",
    "model", "model_id", "model_name", "base_model_name_or_path",
)  # fmt: skip
LARGEST_STEP = 2**53


@dataclass(frozen=True)
class ResultsSource:
    """Results from one source: a table, a rankwise sweep, a training run or a result file.

    Attributes:
        origin: name of the source for messages.
        rows: one row per result, not yet checked. Columns: ``rank``, ``diverged``, each metric,
            and ``seed``, ``learning_rate`` and ``example_id`` where known. The index is the row
            number in the source, from 1.
        metrics: name of each metric in ``rows``, by its name in the source.
        notes: guesses and omissions that the user should know of.
        train_loss: columns ``rank``, ``seed``, ``learning_rate`` (where known), ``step`` and
            ``train_loss``; None where not logged.
        trials: complete trials of a rankwise sweep.
        step: step of the evaluation of a run that counts, where known.
        evaluation: which one that is: "kept", the one of the best checkpoint, which the run kept;
            "best"; or "last".
        is_run: whether the source is a single run, not a table or a sweep.
        settings: values of the SETTINGS of a run that are known, as JSON text.
        chance_loss: chance-level held-out loss of a sweep, where known.
        wording: names of a sweep's loss in sentences.
        distinguished_by: column of a table that distinguishes rows of the same rank, seed and rate.
        noise: standard deviation of a trial's result over seeds, of each metric whose table says
            it without the number of seeds.
        directions: whether more of a metric is better, where the file says so.
    """

    origin: str
    rows: pd.DataFrame
    metrics: Mapping[str, str]
    notes: tuple[str, ...] = ()
    train_loss: pd.DataFrame | None = None
    trials: tuple[TrialRecord, ...] = ()
    step: int | None = None
    evaluation: Literal["kept", "best", "last"] = "last"
    is_run: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    chance_loss: ChanceLoss | None = None
    wording: Wording = PLAIN
    distinguished_by: str | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)


def separate(
    results: Iterable[tuple[str, ResultsSource | str]],
) -> tuple[list[ResultsSource], list[str]]:
    """Separate named sources from reasons why a file or run is left out, which become notes."""
    sources, notes = [], []
    for name, result in results:
        if isinstance(result, ResultsSource):
            sources.append(result)
        else:
            notes.append(f"{name} is left out: {result}")
    return sources, notes


def comparable_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the SETTINGS in a configuration, as JSON text that is equal if the values are."""
    settings = {}
    for name in SETTINGS:
        value = config.get(name)
        if isinstance(value, list):
            value = sorted(value, key=str)  # PEFT writes sets, whose order differs between runs
        if value is not None and value != {}:
            settings[name] = json.dumps(value, sort_keys=True)
    return settings


def log_rows(log: object) -> list[dict[str, Any]]:
    """Return the rows of a log in a JSON file; none if it is not a list."""
    return [row for row in log if isinstance(row, dict)] if isinstance(log, list) else []


def last_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last number that a log holds under each name."""
    values: dict[str, float] = {}
    for row in rows:
        values |= {name: float(value) for name, value in row.items() if is_number(value)}
    return values


def last_step(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> int | None:
    """Return the last step at which one of the names was logged; None if none was."""
    for number, row in reversed(list(enumerate(rows, start=1))):
        if any(is_number(row.get(name)) for name in names):
            return step_of(row, number)
    return None


def train_loss_history(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], identity: Mapping[str, Any]
) -> pd.DataFrame | None:
    """Return a run's training loss per step; None if it was not logged.

    Args:
        rows: rows of the log in order. If a resumed run logged a step twice, the last row counts.
        names: possible names of the training loss; the first that was logged is used.
        identity: the run's ``rank``, and its ``seed`` and ``learning_rate`` where known.
    """
    for name in names:
        losses = {
            step_of(row, number): float(row[name])
            for number, row in enumerate(rows, start=1)
            if is_number(row.get(name))
        }
        if losses:
            steps = sorted(losses)
            logged = [losses[step] for step in steps]
            return pd.DataFrame({**identity, "step": steps, "train_loss": logged})
    return None


def is_scalar(value: object) -> bool:
    """Return whether a JSON value is a number or a text, as ranks, seeds and rates are."""
    return is_number(value) or isinstance(value, str)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; anything else is refused.

    NaN and Infinity are numbers, as Python writes them.
    """
    with reading(f"{str(path)!r} cannot be read as JSON"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    return _as_object(content, repr(str(path)))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file with a JSON object on each line; a line with anything else is refused by number.

    Blank lines are skipped.
    """
    with reading(f"{str(path)!r} cannot be read"):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{str(path)!r} line {number}"
        with reading(f"{place} is not JSON"):
            row = json.loads(line)
        yield _as_object(row, place)


def _as_object(content: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise RequestError(f"{place} holds a JSON {kind}; allowed is an object")
    return content


def step_of(row: Mapping[str, Any], number: int) -> int:
    """Return the step of a row in a log, or the row's number if it has none."""
    for name in ("step", "global_step", "_step", "training_iteration", "current_steps"):
        step: Any = row.get(name)
        if is_number(step) and abs(step) < LARGEST_STEP:  # false for NaN
            return int(step)
    return number
