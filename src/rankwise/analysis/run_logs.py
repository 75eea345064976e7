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
    - ``Trainer.save_metrics``, as run_clm.py and LLaMA-Factory call it: ``eval_results.json`` and
      ``all_results.json`` beside the state, with the evaluation after training.
    - Ray Tune's trials: `rankwise.analysis.ray_trials`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rankwise.analysis import ray_trials
from rankwise.analysis.config import Reading
from rankwise.analysis.evaluations import best_step, kept_step, until
from rankwise.analysis.name_patterns import (
    SEED_WORDS,
    check_rank_pattern,
    number_in_name,
    pattern_advice,
    rank_in_name,
)
from rankwise.analysis.names import (
    LORA_SECTIONS,
    RANK_NAMES,
    SECTIONS,
    SETTING_NAMES,
    SETTING_PREFIXES,
)
from rankwise.analysis.rows import is_baseline
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
CONFIGS = ("adapter_config.json", "config.json", "training_args.json", "args.json", "params.json")
SAVED_METRICS = ("eval_results.json", "all_results.json")
RUN_FILES = ("trainer_state.json", "metrics.jsonl", *SAVED_METRICS, ray_trials.RESULTS)
TRAIN_LOSSES = ("train_loss", "train/loss", "train_mean_nll", "train/mean_nll", "loss")
NO_LOG = f"it has no {', '.join(RUN_FILES[:-1])} or {ray_trials.RESULTS}"


@dataclass
class Log:
    """What a run logged.

    Attributes:
        name: name of its file.
        rows: rows in order.
        train_losses: possible names of the training loss.
        kept: step of the best checkpoint, which the run kept; None if it kept none.
        configs: settings that the log holds.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    train_losses: Sequence[str] = TRAIN_LOSSES
    kept: int | None = None
    configs: list[dict[str, Any]] = field(default_factory=list)


def read_run_directories(
    directory: Path, reading: Reading
) -> tuple[list[ResultsSource], list[str]]:
    """Read the runs in a directory and at most DEPTH levels below it.

    Returns:
        The runs, and a note for each run that is left out; both are empty if there are no runs.

    Raises:
        RequestError: a file of a run cannot be read.
    """
    runs = {}
    for run in find_runs(directory, DEPTH):
        name = str(run.relative_to(directory)) if run != directory else run.resolve().name
        runs[name] = run
    check_rank_pattern(reading.rank_pattern, runs)
    advice = pattern_advice(list(runs))
    return separate((f"run {name}", _read_run(runs[name], name, reading, advice)) for name in runs)


def find_runs(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the runs in a directory and at most ``depth`` levels below it."""
    if ray_trials.is_trial(directory) or _log_file(directory) is not None:
        yield directory  # directories below a run are its checkpoints and adapters
        return
    runs: list[Path] = []
    for path in sorted(directory.iterdir()) if depth else ():
        if path.is_dir() and not path.name.startswith("."):
            runs += find_runs(path, depth - 1)
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
        saved = [run / name for name in SAVED_METRICS if (run / name).is_file()]
        return saved[0] if saved else None
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


def _read_run(run: Path, name: str, reading: Reading, advice: str) -> ResultsSource | str:
    """Return the run, or why it is left out."""
    log = read_log(run)
    if log is None:
        return NO_LOG
    if ray_trials.is_trial(run) and (state := ray_trials.trial_state(run)) != ray_trials.FINISHED:
        return f"its state is {state}"
    configs = [*_read_configs(run), *log.configs]
    kind = _look_up(configs, ("peft_type",), LORA_SECTIONS)
    if kind is not None and str(kind).upper() != "LORA":
        return f"its peft_type is {kind}, not LORA"
    for made, how in (("truncated_from", "was truncated"), ("starts_from", "was trained on")):
        if any(made in config for config in configs):
            return f"its adapter {how} from another trial's; name the sweep's directory instead"
    method = _look_up(configs, ("finetuning_type",), SECTIONS["seed"])
    if method is not None and is_baseline(method):
        return f"it was trained without LoRA (finetuning_type {method})"
    identity, notes = _identity(configs, name, reading)
    if "rank" not in identity:
        missing = f"no rank ({', '.join(RANK_NAMES)}) in {' or '.join(CONFIGS)}"
        return f"{missing}; {advice}" if advice else missing
    if is_baseline(identity["rank"]):
        return f"it was trained without LoRA (rank {identity['rank']})"

    values = last_values(log.rows)
    metrics, _ = find_metrics(_held_out_names(values, reading), reading.metric)
    evaluation, rows = _evaluation(log, metrics, reading)
    values = last_values(rows)
    measured = {metric: values[written] for written, metric in metrics.items() if written in values}
    diverged = any(row.get("diverged") is True for row in log.rows)
    diverged |= not math.isfinite(measured.get("loss", 0.0))
    if not metrics and not diverged:
        advice = _metric_advice(values) if log.train_losses == TRAIN_LOSSES else ""
        return f"{log.name} holds no evaluation{advice}"
    if "loss" in values and "loss" not in metrics.values() and log.train_losses == TRAIN_LOSSES:
        notes.append(f"'loss' is left out{_metric_advice(values)}")
    if diverged:
        notes.append(f"run {name} diverged: its held-out loss is not finite, or its log says so")
    settings: dict[str, str] = {}
    for config in reversed(configs):
        settings |= comparable_settings(config)
    return ResultsSource(
        origin=name,
        rows=pd.DataFrame([{**identity, "diverged": diverged, **measured}], index=[1]),
        metrics={written: metric for written, metric in metrics.items() if metric in measured},
        notes=tuple(notes),
        train_loss=train_loss_history(log.rows, log.train_losses, identity),
        step=last_step(rows, metrics),
        evaluation=evaluation,
        is_run=True,
        settings=settings,
    )


def read_log(run: Path) -> Log | None:
    """Return what a run logged; None if it logged nothing."""
    if ray_trials.is_trial(run):
        return Log(ray_trials.RESULTS, ray_trials.trial_rows(run))
    path = _log_file(run)
    if path is None:
        return None
    if path.name == "metrics.jsonl":
        return Log(path.name, list(read_json_lines(path)))
    # Trainer's train_loss is the mean over the whole training.
    log = Log(path.name, [], train_losses=("loss",))
    step = None
    if path.name == "trainer_state.json":
        state = read_json_object(path)
        log.rows = log_rows(state.get("log_history"))
        log.kept, step = kept_step(state, log.rows), state.get("global_step")
        if isinstance(state.get("trial_params"), dict):  # from Trainer.hyperparameter_search
            log.configs.append(state["trial_params"])
    if not any(is_held_out(name) for name in last_values(log.rows)):
        for saved in SAVED_METRICS:
            if (run / saved).is_file():
                last = {"step": step, **read_json_object(run / saved)}
                log.name, log.rows = saved, [*log.rows, last]
                break
    return log


def _evaluation(
    log: Log, metrics: Mapping[str, str], reading: Reading
) -> tuple[Literal["kept", "best", "last"], Sequence[Mapping[str, Any]]]:
    """Return which evaluation counts, and the rows of the log up to it."""
    if not metrics or reading.evaluation == "last":
        return "last", log.rows
    if reading.evaluation == "best":
        step = best_step(log.rows, metrics, reading)
        return "best", log.rows if step is None else until(log.rows, step)
    if log.kept is None:
        return "last", log.rows
    return "kept", until(log.rows, log.kept)


def _read_configs(run: Path) -> list[dict[str, Any]]:
    """Read the configuration files of a run, the adapter's first."""
    directories = [run, *reversed(_checkpoints(run))]
    others = [path for path in run.iterdir() if path.is_dir() and path not in directories]
    directories += sorted(others)  # one may hold the adapter
    files = [directory / name for name in CONFIGS for directory in directories]
    return [read_json_object(path) for path in files if path.is_file()]


def _identity(
    configs: Sequence[Mapping[str, Any]], name: str, reading: Reading
) -> tuple[dict[str, Any], list[str]]:
    """Return a run's rank, seed and learning rate where known; and notes on guesses."""
    identity: dict[str, Any] = {}
    notes = []
    rank, seed = _rank(configs), None
    if reading.rank_pattern is not None:
        by_name, seed = rank_in_name(reading.rank_pattern, name)
        rank = rank if by_name is None else by_name
        notes.append("rank_pattern gives the rank of each run whose name it fits")
    if rank is not None:
        identity["rank"] = rank
    for setting, spellings in SETTING_NAMES.items():
        value = _look_up(configs, spellings, SECTIONS[setting])
        if setting == "seed" and seed is not None:
            value = seed
        if value is None:
            words = SEED_WORDS if setting == "seed" else spellings
            value = number_in_name(name, words)
            if value is None:
                continue
            notes.append(f"{setting} is read from the run's name where no config has it")
        identity[setting] = value
    return identity, notes


def _rank(configs: Sequence[Mapping[str, Any]]) -> Any:
    """Return the LoRA rank; a bare ``rank`` outside LoRA's sections, only if there is no other."""
    explicit = [name for name in RANK_NAMES if name != "rank"]
    found = _look_up(configs, explicit, SECTIONS["rank"])
    if found is None:
        inner = [
            value
            for config in configs
            for key, value in config.items()
            if isinstance(value, dict) and any(word in key.lower() for word in LORA_SECTIONS)
        ]
        found = _look_up(inner, RANK_NAMES, SECTIONS["rank"])
    return _look_up(configs, RANK_NAMES, SECTIONS["rank"]) if found is None else found


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
                if isinstance(value, dict) and (
                    key.lower() in SETTING_PREFIXES
                    or any(section in key.lower() for section in sections)
                ):
                    places.append(value)
    return None


def _held_out_names(values: Mapping[str, float], reading: Reading) -> list[str]:
    """Return the held-out metrics in a log; if none is named so, all but those of training data.

    The metric that the user named counts as held out.
    """
    asked = [name for name in values if name == reading.metric]
    held_out = [name for name in values if is_held_out(name)]
    if held_out:
        return [*held_out, *(name for name in asked if name not in held_out)]
    names = [name for name in values if name != "loss" and split_part(name)[0] not in TRAIN]
    return [*names, *(name for name in asked if name not in names)]


def _metric_advice(values: Mapping[str, float]) -> str:
    """Return advice on a bare loss, which may be that of training or of held-out data."""
    if "loss" not in values:
        return ""
    return "; if its 'loss' is that of held-out data, say so with --metric loss (metric)"
