"""Results from directories of training runs: transformers' Trainer, tinker-cookbook and scripts that log alike.

Where the layouts are from:
    - transformers ``Trainer``: ``trainer_state.json`` in ``checkpoint-N`` and, after ``save_state()``, in the run; its
      ``log_history`` holds rows of the train loss (``loss``) and of evaluations (``eval_loss``, ``eval_runtime``, ...),
      each with ``step``. PEFT puts ``adapter_config.json`` into the same directories.
    - tinker-cookbook, ``utils/ml_log.py`` and ``supervised/train.py``: ``config.json`` (``lora_rank``,
      ``learning_rate``) and ``metrics.jsonl`` (``step``, ``train_mean_nll``, and on some steps ``test/nll``). Its
      ``learning_rate`` per step is the scheduled one, so only the one in the config says what was asked for.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.source import (
    ResultsSource,
    history,
    is_number,
    is_scalar,
    known_settings,
    last_step,
    last_values,
    read_json_lines,
    read_object,
)
from rankwise.decide.metrics import TRAIN, find_metrics, is_held_out, split_part

DEPTH = 3  # directories below the one named in which runs are looked for
RANK_NAMES = ("lora_rank", "lora_r", "r", "rank")
CONFIGS = ("adapter_config.json", "config.json", "training_args.json", "args.json")
TRAIN_LOSSES: tuple[str, ...] = (
    "train_loss",
    "train/loss",
    "train_mean_nll",
    "train/mean_nll",
    "loss",
)


def read_run_directories(
    directory: Path, metric: str | None = None
) -> tuple[list[ResultsSource], list[str]]:
    """Read the runs at and below a directory, a part each.

    Args:
        directory: a run, or a directory with runs at most DEPTH directories down.
        metric: a metric to look for beside those known by name.

    Returns:
        The parts, and a note for each run that is left out; both are empty if there are no runs.

    Raises:
        RequestError: a file of a run cannot be read.
    """
    parts, notes = [], []
    for run in _find_runs(directory, DEPTH):
        name = str(run.relative_to(directory)) if run != directory else run.resolve().name
        part = _read_run(run, name, metric)
        if isinstance(part, ResultsSource):
            parts.append(part)
        else:
            notes.append(f"run {name} is left out: {part}")
    return parts, notes


def _find_runs(directory: Path, depth: int) -> Iterator[Path]:
    below = sorted(
        path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if _log_file(directory) is not None:
        yield directory  # what lies below, checkpoints and adapters, belongs to it
        return
    runs = [run for path in below for run in _find_runs(path, depth - 1)] if depth else []
    if not runs and (directory / "adapter_config.json").is_file():
        yield directory  # without a log, and said to be
    yield from runs


def _log_file(run: Path) -> Path | None:
    """Return a run's log: its own, or its last checkpoint's where that is further on."""
    if (run / "metrics.jsonl").is_file():
        return run / "metrics.jsonl"
    states = [*_checkpoints(run), run]
    found = [
        state / "trainer_state.json" for state in states if (state / "trainer_state.json").is_file()
    ]
    if len(found) > 1 and found[-1].parent == run:
        # A run that was resumed after save_state() leaves an older state beside newer checkpoints.
        reached = [read_object(path).get("global_step") for path in found[-2:]]
        if all(is_number(step) for step in reached) and reached[0] > reached[1]:  # type: ignore[operator]
            return found[-2]
    return found[-1] if found else None


def _checkpoints(run: Path) -> list[Path]:
    numbered = [
        (re.fullmatch(r"checkpoint-(\d+)", path.name), path)
        for path in run.iterdir()
        if path.is_dir()
    ]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _read_run(run: Path, name: str, metric: str | None) -> ResultsSource | str:
    """Return the run, or why it is left out."""
    log = _log_file(run)
    if log is None:
        return "it has no metrics.jsonl or trainer_state.json"
    configs = _configs(run)
    if log.name == "metrics.jsonl":
        rows = list(read_json_lines(log))
        train_names = TRAIN_LOSSES
    else:
        state = read_object(log)
        logged = state.get("log_history")
        rows = [row for row in logged if isinstance(row, dict)] if isinstance(logged, list) else []
        # The last row's train_loss is the mean over the whole training.
        train_names = ("loss",)
        if isinstance(state.get("trial_params"), dict):  # of Trainer.hyperparameter_search
            configs.append(state["trial_params"])
    kind = _look_up(configs, ("peft_type",), ("lora", "peft", "adapter"))
    if kind is not None and str(kind).upper() != "LORA":
        return f"its peft_type is {kind}, not LORA"
    if any("truncated_from" in config for config in configs):
        return "it is a cut of another trial's adapter; name the sweep's own directory"
    rank = _look_up(configs, RANK_NAMES, ("lora", "peft", "adapter", "model", "default"))
    if rank is None:
        return f"no rank ({', '.join(RANK_NAMES)}) in {' or '.join(CONFIGS)}"
    identity: dict[str, Any] = {"rank": rank}
    notes = []
    for setting, spellings in (("seed", ["seed"]), ("learning_rate", ["learning_rate", "lr"])):
        value = _look_up(configs, spellings, ("train", "args", "optim"))
        if value is None and (value := _from_name(name, spellings)) is not None:
            notes.append(f"{setting} is read from the name of the run where no config has it")
        if value is not None:
            identity[setting] = value

    values = last_values(rows)
    metrics, _ = find_metrics(_evaluated(values), metric)
    # A trial's loss that is not finite is a result: it diverged.
    diverged = any(row.get("diverged") is True for row in rows) or any(
        own == "loss" and not math.isfinite(values[written]) for written, own in metrics.items()
    )
    if not metrics and not diverged:
        return f"{log.name} holds no evaluation"
    if diverged:
        notes.append(f"run {name} diverged: its held-out loss is not finite, or its log says so")
    row = {
        **identity,
        "diverged": diverged,
        **{own: values[written] for written, own in metrics.items()},
    }
    settings: dict[str, str] = {}
    for config in reversed(configs):
        settings |= known_settings(config)
    return ResultsSource(
        origin=name,
        rows=pd.DataFrame([row], index=[1]),
        names=metrics,
        notes=tuple(notes),
        train_loss=history(rows, train_names, identity),
        step=last_step(rows, metrics),
        is_run=True,
        settings=settings,
    )


def _configs(run: Path) -> list[dict[str, Any]]:
    """Read the files that say how a run was set up, the adapter's first."""
    places = [run, *reversed(_checkpoints(run))]
    places += sorted(
        path for path in run.iterdir() if path.is_dir() and path not in places
    )  # an adapter's directory
    files = [place / name for name in CONFIGS for place in places]
    return [read_object(path) for path in files if path.is_file()]


def _look_up(configs: list[dict[str, Any]], names: Sequence[str], parents: tuple[str, ...]) -> Any:
    """Return a setting: of the first config that has it, at the top or inside what a parent's name suggests.

    The parents keep apart what has the same name: a process's ``distributed.rank``, a data set's ``data.seed``.
    """
    for config in configs:
        level = [config]
        while level:
            for place in level:
                for name in names:
                    if is_scalar(place.get(name)):
                        return place[name]
            level = [
                value
                for place in level
                for key, value in place.items()
                if isinstance(value, dict) and any(parent in key.lower() for parent in parents)
            ]
    return None


def _from_name(name: str, words: Sequence[str]) -> str | None:
    """Return the number after a word in a run's name: ``r8-seed1`` has seed 1, ``r8_lr3e-4`` the rate 3e-4."""
    for word in words:
        match = re.search(
            rf"(?:^|[^a-z]){word}[-_=]?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![a-z0-9.])", name.lower()
        )
        if match:
            return match[1]
    return None


def _evaluated(values: Mapping[str, float]) -> list[str]:
    """Return the names of held-out metrics in a log: those that say so, else those that are not the training's."""
    said = [name for name in values if is_held_out(name)]
    return said or [name for name in values if name != "loss" and split_part(name)[0] not in TRAIN]
