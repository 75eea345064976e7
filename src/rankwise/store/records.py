"""Typed records of a sweep directory: its request, its trials, and their held-out results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.decide.evidence import ChanceLoss
from rankwise.engine.config import CheckpointingName, OptimizerName, SchedulerName
from rankwise.errors import RequestError, reading
from rankwise.models.config import PrecisionName
from rankwise.store import trial_files
from rankwise.store.digests import SEAL, digest_of, unseal
from rankwise.store.parsing import parse

EVIDENCE_COLUMNS = ("rank", "seed", "learning_rate", "example_id", "loss", "score", "diverged")
TRAIN_LOSS_COLUMNS = ("rank", "seed", "learning_rate", "step", "train_loss")
UNTRAINED_FILE = "untrained.json"  # held-out losses of the base without an adapter
DECISION_SETTINGS = ("margin", "confidence", "no_prior")  # they affect the decision, not the trials
SEARCH_SETTINGS = ("ranks", "seeds", "strategy", "learning_rate")  # they say which trials there are


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A complete trial: its ``config.json`` and the summary at the end of its ``metrics.jsonl``.

    `rankwise.engine.trial` describes the other fields, `rankwise.store.costs.token_means` the means
    over tokens, which only causal language models have.

    Attributes:
        step: number of optimizer steps.
        eval_loss: mean held-out loss, nats per example; NaN if the trial diverged.
        eval_score: mean held-out task score; NaN if the trial diverged.
        adapter_bytes: size of the adapter file.
        failed: how a trial failed, if it did; it counts as diverged then.
    """

    directory: Path
    rank: int
    seed: int
    learning_rate: float
    lora_alpha: float
    use_rslora: bool
    truncated_from: str | None = None
    starts_from: str | None = None
    failed: str | None = None
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


@dataclass(frozen=True)
class Fingerprints:
    """Digests of all that trials are trained on, so that a moved file is the same file.

    Attributes:
        data: the file or directory of the data.
        eval_data: that of the held-out data, if it is another.
        model_files: all files of the base model but weights.
        weights: every tensor of the base model.
        chat_template: the tokenizer's template; "none" without one.
        tokens: token ids and labels of the training, held-out and test examples.
        model: an earlier version's digest of the model, see `earlier_digest`.
    """

    data: str
    eval_data: str | None = None
    model_files: str | None = None  # this and the others: None in records of earlier versions
    weights: str | None = None
    chat_template: str | None = None
    tokens: str | None = None
    model: str | None = None  # None in records of this version


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The task of a sweep, as its reports and exports need it.

    Attributes:
        name: usually the name of the data file.
        examples: description of the examples, as in "2 classes".
        task_type: PEFT's ``SEQ_CLS`` or ``CAUSAL_LM``.
        loss: unit of the loss.
        chance: description of the model that has the chance-level loss.
        chance_loss: chance-level loss, nats; None if the task does not know it.
        score: name of the task score; larger is better.
        data_layout: columns and roles of instruction data; None for other tasks.
        answers_marked: whether the chat template marks the assistant's tokens, as TRL needs it.
        label_names: names of the classes; empty for other tasks.
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
    max_steps: int | None
    batch_size: int
    micro_batch_tokens: int | None
    max_length: int
    train_examples: int | None
    target_modules: str | Sequence[str]
    quantization: str
    init: str
    loraplus_ratio: float
    lr_scheduler: SchedulerName
    warmup_ratio: float | None  # None where a user's trainer has its own
    weight_decay: float
    max_grad_norm: float
    lora_dropout: float
    optimizer: OptimizerName
    precision: PrecisionName
    gradient_checkpointing: CheckpointingName
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """The request that a sweep directory belongs to, as ``sweep.json`` holds it.

    Attributes:
        settings: every setting that affects results; with the fingerprints, they identify the
            sweep.
        machine: settings of the machine, which change results by rounding at most.
        chosen: values that the memory plan took for ``auto``: ``gradient_checkpointing``,
            ``micro_batch_tokens`` and ``pack_size``, the trials that train together.
        command: the command line, or the Python call.
    """

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    chosen: Mapping[str, Any]
    paths: SweepPaths
    fingerprints: Fingerprints
    task: TaskRecord
    environment: Environment
    command: str

    @property
    def training(self) -> TrainingSettings:
        """The settings that exports repeat, with the values that were chosen for ``auto``."""
        return parse(TrainingSettings, {**self.settings, **self.machine, **self.chosen})

    @property
    def digest(self) -> str:
        """Digest of all that trials depend on besides their own rank, seed and learning rate.

        Each trial carries it. Sweeps that differ in search or decision alone share it.
        """
        apart = (*SEARCH_SETTINGS, *DECISION_SETTINGS)
        settings = {name: value for name, value in self.settings.items() if name not in apart}
        fingerprints = asdict(self.fingerprints)
        del fingerprints["model"]
        return digest_of({"settings": settings, "fingerprints": fingerprints})


def read_sweep(directory: Path) -> SweepRecord | None:
    """Read a sweep directory's ``sweep.json``; return None if there is no such file.

    Raises:
        RequestError: the file is not JSON, is damaged, or lacks an entry.
    """
    path = directory / "sweep.json"
    content = read_json(path)
    if content is None:
        return None
    try:
        # An earlier version's file has no digest, and no other entry.
        if content.keys() - {each.name for each in fields(SweepRecord)}:
            content = unseal(content)
        return parse(SweepRecord, content)
    except KeyError as error:
        raise RequestError(f"{str(path)!r} cannot be read: it lacks {error}") from None
    except ValueError as error:
        raise RequestError(
            f"{str(path)!r} cannot be read: {error}; delete it, and the sweep's own command writes "
            "it anew from its trials"
        ) from None


def is_of_earlier_version(directory: Path) -> bool:
    """Return whether a sweep was made by an earlier version, whose trials carry no digests."""
    return SEAL not in (read_json(directory / "sweep.json") or {SEAL: ""})


def request_of(directory: Path) -> str | None:
    """Return the digest that the trials of a sweep directory must carry; None for any."""
    sweep = read_sweep(directory)
    return None if sweep is None or is_of_earlier_version(directory) else sweep.digest


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of a sweep, and hold it to its digest; return None if there is none.

    Raises:
        RequestError: the file cannot be read, is damaged, or is of an earlier version.
    """
    content = read_json(path)
    try:
        return None if content is None else unseal(content)
    except ValueError as error:
        raise RequestError(
            f"{str(path)!r} cannot be read: {error}; the sweep's own command makes it anew"
        ) from None


def read_finished_sweep(directory: Path) -> tuple[SweepRecord, dict[str, Any]]:
    """Read the request and the content of ``decision.json`` of a finished sweep.

    Raises:
        RequestError: there is no finished sweep in the directory.
    """
    missing = f"{str(directory)!r} holds no finished sweep: it has no "
    for name in ("sweep.json", "decision.json"):
        if not (directory / name).exists():
            raise RequestError(missing + name)
    sweep, decision = read_sweep(directory), _read_derived(directory, "decision.json")
    if sweep is None or decision is None:  # the end of a running sweep has just taken it away
        raise RequestError(missing + ("sweep.json" if sweep is None else "decision.json"))
    return sweep, decision


def _read_derived(directory: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON file that a sweep derived from its trials; earlier versions did not seal it."""
    read = read_json if is_of_earlier_version(directory) else read_sealed
    return read(directory / name)


# The following functions raise RankwiseError if a trial's file is missing or damaged, or if the
# trial is not of the sweep's request.


def read_trials(directory: Path) -> list[TrialRecord]:
    """Read a sweep directory's complete trials, sorted by name."""
    request = request_of(directory)
    return [read_trial(path, request) for path in trial_directories(directory)]


def read_trial(directory: Path, request: str | None = None) -> TrialRecord:
    """Read the directory of one complete trial, which must carry a request's digest, if given."""
    config = trial_files.read_trial_config(directory, request)
    values = {**config, **trial_files.read_summary(directory), "directory": directory}
    for name in ("eval_loss", "eval_score"):
        if values.get(name, math.nan) is None:  # as JSON has NaN
            values[name] = math.nan
    try:
        return parse(TrialRecord, values)
    except KeyError as error:
        raise trial_files.unreadable(directory, f"its files lack {error}") from None
    except ValueError as error:
        raise trial_files.unreadable(directory, error) from None


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
    """
    request = request_of(directory)
    frames = [
        trial_files.read_trial_evidence(trial, request) for trial in trial_directories(directory)
    ]
    if not frames:
        return pd.DataFrame({name: [] for name in EVIDENCE_COLUMNS})
    return pd.concat(frames, ignore_index=True)


def read_train_losses(directory: Path) -> pd.DataFrame:
    """Read the training losses of a sweep directory's complete trials, a row per optimizer step.

    Returns:
        Columns TRAIN_LOSS_COLUMNS; ``train_loss`` in nats.
    """
    rows = []
    for trial in read_trials(directory):
        key = (trial.rank, trial.seed, trial.learning_rate)
        rows += [
            (*key, row["step"], row["train_loss"])
            for row in trial_files.read_steps(trial.directory)
        ]
    return pd.DataFrame(rows, columns=list(TRAIN_LOSS_COLUMNS))


def read_chance_loss(directory: Path) -> ChanceLoss | None:
    """Read the held-out loss of a model that has learned nothing; return None if it is unknown.

    Returns:
        The task's chance level, or the losses of the untrained base by ``example_id``.
    """
    sweep = read_sweep(directory)
    if sweep is not None and sweep.task.chance_loss is not None:
        return sweep.task.chance_loss
    base = _read_derived(directory, UNTRAINED_FILE)
    if base is None:
        return None
    return pd.Series(base["loss"], index=base["example_id"], dtype=float)


def trial_directories(directory: Path) -> list[Path]:
    """Return the directories of a sweep's complete trials, sorted by name."""
    return sorted((directory / "trials").glob("[!.]*"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file's object; return None if there is no such file.

    Raises:
        RequestError: the file cannot be read, or holds no JSON object.
    """
    with reading(f"{str(path)!r} cannot be read"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        return trial_files.json_object(content)
