"""Typed records of a sweep directory: its request, its trials, and their held-out results."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from rankwise.errors import RankwiseError, RequestError, some

if TYPE_CHECKING:
    from rankwise.decide.evidence import ChanceLoss

Record = TypeVar("Record")

EVIDENCE_COLUMNS = ("rank", "seed", "learning_rate", "example_id", "loss", "score", "diverged")
TRAIN_LOSS_COLUMNS = ("rank", "seed", "learning_rate", "step", "train_loss")
UNTRAINED_FILE = "untrained.json"  # held-out losses of the base without an adapter
SUMMARY_BYTES = 8192  # more than the last line of a metrics.jsonl ever takes


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A complete trial: its ``config.json`` and the summary at the end of its ``metrics.jsonl``.

    `rankwise.engine.trial` describes the fields of the trial and its measurements.

    Attributes:
        directory: the trial's directory; its name is the trial's name.
        step: number of optimizer steps.
        eval_loss: mean held-out loss, nats per example; NaN if the trial diverged.
        eval_score: mean held-out task score; NaN if the trial diverged.
        adapter_bytes: size of the adapter file.
        eval_token_loss: mean held-out loss over all tokens; this and the following are measured
            of causal language models only, see `rankwise.store.costs.token_means`.
        eval_perplexity: exponential of that loss.
        eval_token_accuracy: share of the tokens that are the model's first choice.
        eval_exact_match: share of the examples whose every token is the model's first choice.
    """

    directory: Path
    rank: int
    seed: int
    learning_rate: float
    lora_alpha: float
    use_rslora: bool
    truncated_from: str | None = None
    step: int
    diverged: bool
    eval_loss: float
    eval_score: float
    trainable_params: int
    adapter_bytes: int
    train_seconds: float
    pack_seconds: float
    pack_size: int
    eval_seconds: float
    peak_memory_bytes: int
    eval_token_loss: float | None = None
    eval_perplexity: float | None = None
    eval_token_accuracy: float | None = None
    eval_exact_match: float | None = None

    @property
    def name(self) -> str:
        """The trial's name, as in ``r8-lr0.001-seed0``."""
        return self.directory.name

    @property
    def seconds_spent(self) -> float:
        """The trial's share of its pack's training time, and the time of scoring it."""
        return self.pack_seconds / self.pack_size + self.eval_seconds


@dataclass(frozen=True, kw_only=True)
class SweepPaths:
    """Model and data as the request names them; None for a built-in sample or no file."""

    model: str | None
    data: str | None
    eval_data: str | None


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Hashes of the contents of model and data, so that a moved file is the same file."""

    model: str
    data: str
    eval_data: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The task of a sweep, as its reports and exports need it.

    Attributes:
        name: name of the task, usually the data file's.
        examples: description of the examples, as in "2 classes".
        task_type: PEFT's: ``SEQ_CLS`` or ``CAUSAL_LM``.
        loss: unit of the loss.
        chance: what gives the chance-level loss; ``chance_loss`` is that loss, nats.
        score: name of the task score; larger is better.
        data_layout: columns and roles of instruction data; None for other tasks.
        answers_marked: whether the chat template marks the assistant's tokens, as TRL needs it.
        label_names: names of the classes; empty where there are none.
        train_examples: number of examples in this part of the data; so for the other parts.
    """

    name: str
    examples: str
    task_type: str
    loss: str
    chance: str
    chance_loss: float | None
    score: str
    data_layout: Mapping[str, Any] | None
    chat_template: bool
    answers_marked: bool
    label_names: Sequence[str]
    train_examples: int
    held_out_examples: int
    test_examples: int


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The versions and the hardware that a sweep ran on."""

    versions: Mapping[str, str]
    platform: str
    cpu_count: int | None
    threads: int
    device: str


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a sweep that its exports repeat; `rankwise.SweepConfig` describes each."""

    epochs: int
    batch_size: int
    max_length: int
    train_examples: int | None
    target_modules: str | Sequence[str]
    quantization: str
    init: str
    loraplus_ratio: float
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """The request that a sweep directory belongs to, as ``sweep.json`` holds it.

    Attributes:
        settings: every setting that affects results, by its name in `rankwise.SweepConfig`.
        paths: model and data as the request names them.
        fingerprints: hashes of their contents; with the settings, they identify the sweep.
        task: the task that was loaded from the data.
        environment: versions and hardware.
        command: the command line, or the Python call.
    """

    settings: Mapping[str, Any]
    paths: SweepPaths
    fingerprints: Fingerprints
    task: TaskRecord
    environment: Environment
    command: str

    @property
    def training(self) -> TrainingSettings:
        """The settings that exports repeat."""
        return _parse(TrainingSettings, self.settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``sweep.json``."""
        return asdict(self)


def read_sweep(directory: Path) -> SweepRecord | None:
    """Read a sweep directory's ``sweep.json``; return None if there is no such file.

    Raises:
        RequestError: the file is not JSON, or lacks an entry.
    """
    path = directory / "sweep.json"
    content = read_json(path)
    if content is None:
        return None
    parts = {
        "paths": SweepPaths,
        "fingerprints": Fingerprints,
        "task": TaskRecord,
        "environment": Environment,
    }
    try:
        read: dict[str, Any] = {name: _parse(kind, content[name]) for name, kind in parts.items()}
        return _parse(SweepRecord, {**content, **read})
    except KeyError as error:
        raise RequestError(f"{str(path)!r} cannot be read: it lacks {error}") from None


def read_finished_sweep(directory: Path) -> tuple[SweepRecord, dict[str, Any]]:
    """Read the request and the content of ``decision.json`` of a finished sweep.

    Raises:
        RequestError: there is no finished sweep in the directory.
    """
    for name in ("sweep.json", "decision.json"):
        if not (directory / name).exists():
            raise RequestError(f"{str(directory)!r} holds no finished sweep: it has no {name}")
    decision, sweep = read_json(directory / "decision.json"), read_sweep(directory)
    assert sweep is not None
    assert decision is not None
    return sweep, decision


def read_trials(
    directory: Path, *, rank: int | None = None, learning_rate: float | None = None
) -> list[TrialRecord]:
    """Read a sweep directory's complete trials, all or those of one rank and one learning rate.

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    trials = [read_trial(path) for path in trial_directories(directory)]
    return select_trials(trials, rank=rank, learning_rate=learning_rate)


def read_trial(directory: Path) -> TrialRecord:
    """Read the directory of one complete trial.

    Raises:
        RankwiseError: a file is missing or broken.
    """
    values = {**read_trial_config(directory), **read_summary(directory), "directory": directory}
    if values.get("diverged"):
        values.update(eval_loss=math.nan, eval_score=math.nan)
    try:
        return _parse(TrialRecord, values)
    except KeyError as error:
        raise unreadable(directory, f"its files lack {error}") from None


def select_trials(
    trials: Sequence[TrialRecord], *, rank: int | None = None, learning_rate: float | None = None
) -> list[TrialRecord]:
    """Return the trials of one rank and one learning rate; None stands for any."""
    return [
        trial
        for trial in trials
        if rank in (None, trial.rank) and learning_rate in (None, trial.learning_rate)
    ]


def read_evidence(directory: Path) -> pd.DataFrame:
    """Read the held-out results of a sweep directory's complete trials, a row per example.

    Returns:
        Columns EVIDENCE_COLUMNS, and ``tokens`` where examples have several.

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    frames = []
    for trial in trial_directories(directory):
        try:
            frames.append(pd.read_parquet(trial / "evidence.parquet"))
        except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
            raise unreadable(trial, f"evidence.parquet: {error}") from None
    if not frames:
        return pd.DataFrame({name: [] for name in EVIDENCE_COLUMNS})
    return pd.concat(frames, ignore_index=True)


def read_train_losses(directory: Path) -> pd.DataFrame:
    """Read the training losses of a sweep directory's complete trials, a row per optimizer step.

    Returns:
        Columns TRAIN_LOSS_COLUMNS; ``train_loss`` in nats.

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    rows = []
    for trial in read_trials(directory):
        key = (trial.rank, trial.seed, trial.learning_rate)
        rows += [(*key, row["step"], row["train_loss"]) for row in read_steps(trial.directory)]
    return pd.DataFrame(rows, columns=list(TRAIN_LOSS_COLUMNS))


def read_chance_loss(directory: Path) -> "ChanceLoss | None":
    """Read the held-out loss of a model that has learned nothing, None if it is unknown.

    Returns:
        The task's chance level, or the losses of the untrained base by ``example_id``.
    """
    sweep = read_sweep(directory)
    if sweep is not None and sweep.task.chance_loss is not None:
        return sweep.task.chance_loss
    base = read_json(directory / UNTRAINED_FILE)
    if base is None:
        return None
    return pd.Series(base["loss"], index=base["example_id"], dtype=float)


def trial_directories(directory: Path) -> list[Path]:
    """Return the directories of a sweep's complete trials, sorted by name."""
    paths = (directory / "trials").glob("*")
    return sorted(path for path in paths if not path.name.startswith("."))


def read_trial_config(trial: Path) -> dict[str, Any]:
    """Read a trial directory's ``config.json``.

    Raises:
        RankwiseError: it is missing or broken.
    """
    try:
        config = read_json(trial / "config.json")
    except RequestError as error:
        raise unreadable(trial, error) from None
    if config is None:
        raise unreadable(trial, "it has no config.json")
    return config


def read_steps(trial: Path) -> list[dict[str, Any]]:
    """Read the measurements of each optimizer step, the other lines of ``metrics.jsonl``.

    Raises:
        RankwiseError: it is missing or broken.
    """
    try:
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise unreadable(trial, f"metrics.jsonl: {error}") from None
    return rows[:-1]  # the last line is the summary


def read_summary(trial: Path) -> dict[str, Any]:
    """Read the measurements of a whole trial, the last line of its ``metrics.jsonl``.

    Raises:
        RankwiseError: the file is missing or broken.
    """
    try:
        with (trial / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SUMMARY_BYTES))
            lines = file.read().splitlines()
        summary = json.loads(lines[-1] if lines else b"")
    except (OSError, ValueError) as error:
        raise unreadable(trial, f"metrics.jsonl: {error}") from None
    if not isinstance(summary, dict) or "trainable_params" not in summary:
        raise unreadable(trial, "metrics.jsonl ends before its last line")
    return summary


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file's object; return None if there is no such file.

    Raises:
        RequestError: the file cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{str(path)!r} cannot be read: it holds no JSON object")
    return content


def unreadable(trial: Path, reason: object) -> RankwiseError:
    """Return the error about a trial that cannot be read, with the remedy."""
    return RankwiseError(
        f"trial {str(trial)!r} cannot be read: {' '.join(str(reason).split()).rstrip('.')}; "
        "delete its directory, and the sweep's own command trains it again"
    )


def _parse(kind: type[Record], content: Mapping[str, Any]) -> Record:
    """Build a dataclass from a JSON object; raise KeyError for the entries that it lacks."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    lacking = [
        name for name, field in known.items() if name not in content and field.default is MISSING
    ]
    if lacking:
        raise KeyError(some(lacking))
    return kind(**{name: content[name] for name in known if name in content})
