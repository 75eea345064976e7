"""What one source of results gives, before several are put together."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.decide.evidence import ChanceLoss, is_number
from rankwise.decide.explain import PLAIN, Wording
from rankwise.errors import RequestError
from rankwise.store.records import TrialRecord

# Settings that move results as much as a rank does; runs that differ in them do not compare ranks alone.
SETTINGS = (
    "peft_type", "target_modules", "use_rslora", "use_dora", "init_lora_weights", "lora_dropout", "bias",
    "modules_to_save", "rank_pattern", "layers_to_transform", "optimizer_type", "optim", "lr_scheduler",
    "lr_scheduler_type", "lr_schedule", "max_steps", "num_epochs", "num_train_epochs", "epochs", "batch_size",
    "per_device_train_batch_size", "weight_decay", "model", "model_id", "model_name", "base_model_name_or_path",
)  # fmt: skip


@dataclass(frozen=True)
class ResultsSource:
    """One source: a table, a rankwise sweep, a run or a result file.

    Attributes:
        origin: what to call it in a message.
        rows: a row per result, not yet checked: columns ``rank``, ``diverged``, the metrics' own names, and ``seed``,
            ``learning_rate`` and ``example_id`` where known. The index is the row's number in the source.
        names: the metrics, from the name as written to its own name.
        notes: what was guessed or left out.
        train_loss: columns ``rank``, ``seed``, ``learning_rate`` (as far as known), ``step`` and ``train_loss``.
        trials: of a sweep, its complete trials.
        step: of a run, the step of the evaluation that counts, if known.
        is_run: whether it is a single run, not a table or a sweep.
        settings: those of SETTINGS that are known, as JSON text.
        chance_loss: of a sweep, the held-out loss that says nothing is learnt, where it is known.
        wording: of a sweep, how sentences speak of its loss.
    """

    origin: str
    rows: pd.DataFrame
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()
    train_loss: pd.DataFrame | None = None
    trials: tuple[TrialRecord, ...] = ()
    step: int | None = None
    is_run: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    chance_loss: ChanceLoss | None = None
    wording: Wording = PLAIN


def known_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return those of SETTINGS that a configuration holds, as text that compares equal when the values do."""
    found = {}
    for name in SETTINGS:
        value = config.get(name)
        if isinstance(value, list):
            value = sorted(value, key=str)  # PEFT writes sets, whose order differs between runs
        if value is not None and value != {}:
            found[name] = json.dumps(value, sort_keys=True)
    return found


def last_values(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the last number logged under each name."""
    values: dict[str, float] = {}
    for row in rows:
        values |= {name: float(value) for name, value in row.items() if is_number(value)}
    return values


def is_scalar(value: object) -> bool:
    """Whether a JSON value can be a rank, a seed or a rate, right or wrong: a number or a text."""
    return is_number(value) or isinstance(value, str)


def history(
    rows: list[dict[str, Any]], names: tuple[str, ...], identity: Mapping[str, Any]
) -> pd.DataFrame | None:
    """Return a run's training loss per step, None if it was not logged.

    Args:
        rows: of the log, in order; a step logged twice (by a resumed run) counts once, the last time.
        names: under which the loss may be logged; the first that is there counts.
        identity: the run's ``rank`` and, as far as known, ``seed`` and ``learning_rate``.
    """
    for name in names:
        logged = {
            _step(row, number): row[name]
            for number, row in enumerate(rows, start=1)
            if is_number(row.get(name))
        }
        if logged:
            steps = sorted(logged)
            return pd.DataFrame(
                {**identity, "step": steps, "train_loss": [float(logged[step]) for step in steps]}
            )
    return None


def _step(row: Mapping[str, Any], number: int) -> int:
    given = (row[name] for name in ("step", "global_step", "_step") if is_number(row.get(name)))
    return next((int(step) for step in given if abs(step) < 2**53), number)  # NaN is not


def last_step(rows: list[dict[str, Any]], names: Mapping[str, str]) -> int | None:
    """Return the step at which a metric was last logged."""
    steps = [
        _step(row, number)
        for number, row in enumerate(rows, start=1)
        if any(is_number(row.get(n)) for n in names)
    ]
    return steps[-1] if steps else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; NaN and Infinity, which Python's writer uses, are numbers.

    Raises:
        RequestError: it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{str(path)!r} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(
            f"{str(path)!r} holds a JSON {type(content).__name__}; allowed is an object"
        )
    return content


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, each an object; blank lines are skipped.

    Raises:
        RequestError: it cannot be read or a line is something else; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{str(path)!r} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise RequestError(
                f"{str(path)!r} line {number} holds a JSON {type(row).__name__}; allowed is an object"
            )
        yield row
