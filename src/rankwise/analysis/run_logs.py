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
    log_rows,
    read_json_lines,
    read_json_object,
    separate,
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


def read_run_directories(
    directory: Path, metric: str | None = None
) -> tuple[list[ResultsSource], list[str]]:
    """Read the runs in a directory and at most DEPTH levels below it.

    Returns:
        The runs, and a note for each run that is left out; both are empty if there are no runs.

    Raises:
        RequestError: a file of a run cannot be read.
    """
    results = []
    for run in _find_runs(directory, DEPTH):
        name = str(run.relative_to(directory)) if run != directory else run.resolve().name
        results.append((f"run {name}", _read_run(run, name, metric)))
    return separate(results)


def _find_runs(directory: Path, depth: int) -> Iterator[Path]:
    if _log_file(directory) is not None:
        yield directory  # directories below a run are its checkpoints and adapters
        return
    runs: list[Path] = []
    for path in sorted(directory.iterdir()) if depth else ():
        if path.is_dir() and not path.name.startswith("."):
            runs += _find_runs(path, depth - 1)
    if not runs and (directory / "adapter_config.json").is_file():
        yield directory  # an adapter without a log; a note reports that it is left out
    yield from runs


def _log_file(run: Path) -> Path | None:
    """Return the log of a run: its own, or its last checkpoint's if that has more steps."""
    if (run / "metrics.jsonl").is_file():
        return run / "metrics.jsonl"
    paths = [place / "trainer_state.json" for place in (*_checkpoints(run), run)]
    states = [path for path in paths if path.is_file()]
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
    path = _log_file(run)
    if path is None:
        return "it has no metrics.jsonl or trainer_state.json"
    configs = _read_configs(run)
    train_losses: Sequence[str] = TRAIN_LOSSES
    if path.name == "metrics.jsonl":
        rows = list(read_json_lines(path))
    else:
        state = read_json_object(path)
        if isinstance(state.get("trial_params"), dict):  # from Trainer.hyperparameter_search
            configs.append(state["trial_params"])
        rows = log_rows(state.get("log_history"))
        train_losses = ("loss",)  # Trainer's train_loss is the mean over the whole training
    kind = _look_up(configs, ("peft_type",), LORA_SECTIONS)
    if kind is not None and str(kind).upper() != "LORA":
        return f"its peft_type is {kind}, not LORA"
    if any("truncated_from" in config for config in configs):
        return "its adapter was truncated from another trial's; name the sweep's directory instead"
    rank = _look_up(configs, RANK_NAMES, RANK_SECTIONS)
    if rank is None:
        return f"no rank ({', '.join(RANK_NAMES)}) in {' or '.join(CONFIGS)}"
    identity, notes = _identity(configs, rank, name)

    values = last_values(rows)
    metrics, _ = find_metrics(_held_out_names(values), metric)
    measured = {metric: values[written] for written, metric in metrics.items()}
    diverged = any(row.get("diverged") is True for row in rows)
    diverged |= not math.isfinite(measured.get("loss", 0.0))
    if not metrics and not diverged:
        return f"{path.name} holds no evaluation"
    if diverged:
        notes.append(f"run {name} diverged: its held-out loss is not finite, or its log says so")
    settings: dict[str, str] = {}
    for config in reversed(configs):
        settings |= comparable_settings(config)
    return ResultsSource(
        origin=name,
        rows=pd.DataFrame([{**identity, "diverged": diverged, **measured}], index=[1]),
        metrics=metrics,
        notes=tuple(notes),
        train_loss=train_loss_history(rows, train_losses, identity),
        step=last_step(rows, metrics),
        is_run=True,
        settings=settings,
    )


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
            if value is None:
                continue
            notes.append(f"{setting} is read from the run's name where no config has it")
        identity[setting] = value
    return identity, notes


def _look_up(
    configs: Sequence[Mapping[str, Any]], names: Sequence[str], sections: tuple[str, ...]
) -> Any:
    """Return a setting from the first config that has it, at its top or in one of the sections."""
    for config in configs:
        places = [config]
        for place in places:  # grows meanwhile, so that outer sections come before inner ones
            for name in names:
                if is_scalar(place.get(name)):
                    return place[name]
            for key, value in place.items():
                if isinstance(value, dict) and any(section in key.lower() for section in sections):
                    places.append(value)
    return None


def _number_in_name(name: str, words: Sequence[str]) -> str | None:
    """Return the number after a word in a run's name: 1 after "seed" in ``r8-seed1``."""
    for word in words:
        pattern = rf"(?:^|[^a-z]){word}[-_=]?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![a-z0-9.])"
        match = re.search(pattern, name.lower())
        if match:
            return match[1]
    return None


def _held_out_names(values: Mapping[str, float]) -> list[str]:
    """Return the held-out metrics in a log; if none is named so, all but those of training data."""
    held_out = [name for name in values if is_held_out(name)]
    if held_out:
        return held_out
    return [name for name in values if name != "loss" and split_part(name)[0] not in TRAIN]
