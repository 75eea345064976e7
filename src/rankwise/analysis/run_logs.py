"""Results from directories of training runs: transformers' Trainer, tinker-cookbook and the like.

Layouts:
    - transformers ``Trainer``: ``trainer_state.json`` in ``checkpoint-N`` and, after
      ``save_state()``, in the run's directory. Its ``log_history`` holds rows of the training loss
      (``loss``) and of evaluations (``eval_loss``, ``eval_runtime``, ...), each with ``step``. PEFT
      writes ``adapter_config.json`` to the same directories.
    - tinker-cookbook, ``utils/ml_log.py`` and ``supervised/train.py``: ``config.json``
      (``lora_rank``, ``learning_rate``) and ``metrics.jsonl`` (``step``, ``train_mean_nll`` and, at
      some steps, ``test/nll``). ``learning_rate`` in the metrics is the scheduled rate of a step;
      only the config has the peak rate.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.source import (
    ResultsSource,
    comparable_settings,
    is_number,
    is_scalar,
    last_step,
    last_values,
    read_json_lines,
    read_json_object,
    train_loss_history,
)
from rankwise.decide.metrics import TRAIN, find_metrics, is_held_out, split_part

DEPTH = 3  # levels of directories that are searched for runs
CONFIGS = ("adapter_config.json", "config.json", "training_args.json", "args.json")
RANK_NAMES = ("lora_rank", "lora_r", "r", "rank")
SETTING_NAMES = {"seed": ("seed",), "learning_rate": ("learning_rate", "lr")}
TRAIN_LOSSES = ("train_loss", "train/loss", "train_mean_nll", "train/mean_nll", "loss")
# Parts of the names of nested sections. They exclude settings of the same name elsewhere, such as
# ``distributed.rank`` or ``data.seed``.
LORA_SECTIONS = ("lora", "peft", "adapter")
RANK_SECTIONS = (*LORA_SECTIONS, "model", "default")
TRAINING_SECTIONS = ("train", "args", "optim")


@dataclass(frozen=True)
class _RunLog:
    """A run's log and configuration files.

    Attributes:
        name: file name of the log.
        rows: logged rows in order.
        train_losses: possible names of the training loss in the rows.
        configs: contents of the configuration files, the adapter's first.
    """

    name: str
    rows: list[dict[str, Any]]
    train_losses: tuple[str, ...]
    configs: list[dict[str, Any]]


def read_run_directories(
    directory: Path, metric: str | None = None
) -> tuple[list[ResultsSource], list[str]]:
    """Read the runs in a directory and below it.

    Args:
        directory: a run, or a directory with runs at most DEPTH levels below it.
        metric: a metric to look for, besides those with known names.

    Returns:
        The runs, and a note for each run that is left out; both are empty if there are no runs.

    Raises:
        RequestError: a file of a run cannot be read.
    """
    sources, notes = [], []
    for run in _find_runs(directory, DEPTH):
        name = str(run.relative_to(directory)) if run != directory else run.resolve().name
        source = _read_run(run, name, metric)
        if isinstance(source, ResultsSource):
            sources.append(source)
        else:
            notes.append(f"run {name} is left out: {source}")
    return sources, notes


def _find_runs(directory: Path, depth: int) -> Iterator[Path]:
    if _log_file(directory) is not None:
        yield directory  # directories below a run are its checkpoints and adapters
        return
    runs: list[Path] = []
    if depth:
        for path in sorted(directory.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                runs += _find_runs(path, depth - 1)
    if not runs and (directory / "adapter_config.json").is_file():
        yield directory  # an adapter without a log; a note reports that it is left out
    yield from runs


def _log_file(run: Path) -> Path | None:
    """Return the log of a run: its own, or its last checkpoint's if that has more steps."""
    if (run / "metrics.jsonl").is_file():
        return run / "metrics.jsonl"
    directories = [*_checkpoints(run), run]
    states = [directory / "trainer_state.json" for directory in directories]
    states = [state for state in states if state.is_file()]
    if not states:
        return None
    if len(states) > 1 and states[-1].parent == run:
        # A run that was resumed after save_state() has an older state than its checkpoints.
        steps: list[Any] = [read_json_object(state).get("global_step") for state in states[-2:]]
        if all(map(is_number, steps)) and steps[0] > steps[1]:
            return states[-2]
    return states[-1]


def _checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run by ascending step."""
    steps = {}
    for path in run.iterdir():
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            steps[path] = int(match[1])
    return sorted(steps, key=lambda path: (steps[path], path))


def _read_run(run: Path, name: str, metric: str | None) -> ResultsSource | str:
    """Return the run, or why it is left out."""
    log = _read_log(run)
    if log is None:
        return "it has no metrics.jsonl or trainer_state.json"
    kind = _look_up(log.configs, ("peft_type",), LORA_SECTIONS)
    if kind is not None and str(kind).upper() != "LORA":
        return f"its peft_type is {kind}, not LORA"
    if any("truncated_from" in config for config in log.configs):
        return "its adapter was truncated from another trial's; name the sweep's directory instead"
    rank = _look_up(log.configs, RANK_NAMES, RANK_SECTIONS)
    if rank is None:
        return f"no rank ({', '.join(RANK_NAMES)}) in {' or '.join(CONFIGS)}"
    identity, notes = _identity(log.configs, rank, name)

    values = last_values(log.rows)
    metrics, _ = find_metrics(_held_out_names(values), metric)
    measured = {metric: values[written] for written, metric in metrics.items()}
    diverged = any(row.get("diverged") is True for row in log.rows)
    if not math.isfinite(measured.get("loss", 0.0)):
        diverged = True
    if not metrics and not diverged:
        return f"{log.name} holds no evaluation"
    if diverged:
        notes.append(f"run {name} diverged: its held-out loss is not finite, or its log says so")
    settings: dict[str, str] = {}
    for config in reversed(log.configs):
        settings |= comparable_settings(config)
    return ResultsSource(
        origin=name,
        rows=pd.DataFrame([{**identity, "diverged": diverged, **measured}], index=[1]),
        metrics=metrics,
        notes=tuple(notes),
        train_loss=train_loss_history(log.rows, log.train_losses, identity),
        step=last_step(log.rows, metrics),
        is_run=True,
        settings=settings,
    )


def _read_log(run: Path) -> _RunLog | None:
    path = _log_file(run)
    if path is None:
        return None
    configs = _read_configs(run)
    if path.name == "metrics.jsonl":
        return _RunLog(path.name, list(read_json_lines(path)), TRAIN_LOSSES, configs)
    state = read_json_object(path)
    if isinstance(state.get("trial_params"), dict):  # written by Trainer.hyperparameter_search
        configs.append(state["trial_params"])
    logged = state.get("log_history")
    rows = [row for row in logged if isinstance(row, dict)] if isinstance(logged, list) else []
    # train_loss in Trainer's last row is the mean over the whole training.
    return _RunLog(path.name, rows, ("loss",), configs)


def _read_configs(run: Path) -> list[dict[str, Any]]:
    """Read the configuration files of a run, the adapter's first."""
    directories = [run, *reversed(_checkpoints(run))]
    others = [path for path in run.iterdir() if path.is_dir() and path not in directories]
    directories += sorted(others)  # one may hold the adapter
    files = [directory / name for name in CONFIGS for directory in directories]
    return [read_json_object(path) for path in files if path.is_file()]


def _identity(
    configs: Sequence[Mapping[str, Any]], rank: Any, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Return a run's rank, and its seed and learning rate where known; and notes on guesses."""
    identity, notes = {"rank": rank}, []
    for setting, spellings in SETTING_NAMES.items():
        value = _look_up(configs, spellings, TRAINING_SECTIONS)
        if value is None:
            value = _number_in_name(name, spellings)
            if value is not None:
                notes.append(f"{setting} is read from the run's name where no config has it")
        if value is not None:
            identity[setting] = value
    return identity, notes


def _look_up(
    configs: Sequence[Mapping[str, Any]], names: Sequence[str], sections: tuple[str, ...]
) -> Any:
    """Return a setting from the first config that has it, at the top or in a nested section.

    Args:
        configs: contents of configuration files.
        names: possible names of the setting.
        sections: texts of which one must occur in the name of a nested section.
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
                if isinstance(value, dict) and any(section in key.lower() for section in sections)
            ]
    return None


def _number_in_name(name: str, words: Sequence[str]) -> str | None:
    """Return the number after a word in a run's name, such as 1 after "seed" in ``r8-seed1``."""
    for word in words:
        pattern = rf"(?:^|[^a-z]){word}[-_=]?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![a-z0-9.])"
        match = re.search(pattern, name.lower())
        if match:
            return match[1]
    return None


def _held_out_names(values: Mapping[str, float]) -> list[str]:
    """Return the names of held-out metrics in a log.

    If no name says that it is held out, these are all that are not of the training data.
    """
    held_out = [name for name in values if is_held_out(name)]
    if held_out:
        return held_out
    return [name for name in values if name != "loss" and split_part(name)[0] not in TRAIN]
