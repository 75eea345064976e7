"""The sweep directory: locked by one process, written atomically, resumed exactly."""

import io
import json
import math
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from rankwise.decide.evidence import HEALED
from rankwise.engine.trial import FinishedTrial
from rankwise.errors import RankwiseError, RequestError
from rankwise.formatting import json_value
from rankwise.lora.adapter import Adapter
from rankwise.lora.files import write_adapter
from rankwise.store import records
from rankwise.store.checkpoints import CheckpointDirectory
from rankwise.store.costs import token_means
from rankwise.store.records import EVIDENCE_COLUMNS, SweepRecord, TrialRecord

PARTIAL = ".partial-"
FAILED = ".failed-"  # begins the names of trials that were taken back
RANK_PATTERN_DIRECTORY = "best-rank-pattern"
DIAGNOSIS_DIRECTORY = "diagnosis"  # of trials that no decision on ranks sees
DECISION_SETTINGS = ("margin", "confidence", "no_prior")  # they affect the decision, not the trials


class SweepStore:
    """A sweep's directory, locked by one process at a time.

    A trial is written under a temporary name and then renamed. So a sweep that is killed at any
    moment leaves complete trials only, and resumes with the next one, from its last checkpoint if
    it has one.

    Attributes:
        checkpoints: trials in training.

    Args:
        directory: a new directory, or one with no complete trials of another request.
        record: the request.
        extend: allow more seeds than in the directory's request. Trials do not depend on one
            another, so the result is the same as if the sweep had started with all seeds.

    Raises:
        RequestError: the directory cannot be used, belongs to another request, or is in use.
    """

    def __init__(self, directory: Path, record: SweepRecord, *, extend: bool = False) -> None:
        self.directory = directory
        self.trials_directory = directory / "trials"
        out = f"out {str(directory)!r}"
        refuse_bad_directory(directory)
        try:
            self.trials_directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(f"{out} is in use by another running sweep") from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"{out} cannot be written: {reason}") from None
        try:
            for folder in (self.trials_directory, directory / DIAGNOSIS_DIRECTORY):
                for leftover in folder.glob(f"{PARTIAL}*"):
                    shutil.rmtree(leftover)
            self.checkpoints = CheckpointDirectory(directory / ".unfinished", record.environment)
            resumed = can_resume(directory, record, extend=extend)
            if not resumed:
                self.checkpoints.clear()
                (directory / records.UNTRAINED_FILE).unlink(missing_ok=True)
            before = records.read_sweep(directory) if resumed and not extend else None
            if before is None:
                self.write_json("sweep.json", asdict(record))
            elif (before.machine, before.chosen) != (record.machine, record.chosen):
                now = replace(before, machine=record.machine, chosen=record.chosen)
                self.write_json("sweep.json", asdict(now))
        except RankwiseError:
            self._lock.release()
            raise

    def __enter__(self) -> "SweepStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def add(
        self, finished: FinishedTrial, settings: Mapping[str, Any], folder: str = "trials"
    ) -> None:
        """Store a finished trial under ``trials/``, or in another folder of the sweep.

        Args:
            finished: the trial with its adapter and its measurements.
            settings: further entries of its ``config.json``.
            folder: name of the folder.

        Raises:
            RankwiseError: the directory cannot be written; trials stored before stay as they are.
        """
        name, parent = finished.trial.name, self.directory / folder
        partial = parent / f"{PARTIAL}{name}"
        try:
            for file, content in _trial_files(finished, settings).items():
                _write(partial / file, content)
            for file, source in finished.files.items():
                os.replace(source, partial / file)
            os.replace(partial, parent / name)
            for source in finished.files.values():
                shutil.rmtree(source.parent, ignore_errors=True)
            self.checkpoints.forget(self.trial_names())
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = f"the {len(self.trial_names())} "
            raise _cannot_write(parent / name, error, kept) from None

    def take_back(self, name: str) -> None:
        """Take a trial out of the sweep, so that it will run again; its files are kept."""
        kept = self.trials_directory / f"{FAILED}{name}"
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(self.trials_directory / name, kept)

    def trial_names(self) -> list[str]:
        """Return the names of the complete trials."""
        return [path.name for path in records.trial_directories(self.directory)]

    def trials(self) -> list[TrialRecord]:
        """Return the complete trials."""
        return records.read_trials(self.directory)

    def evidence(self) -> pd.DataFrame:
        """Return the held-out results of all complete trials, see `read_evidence`."""
        return records.read_evidence(self.directory)

    def diagnosis(self, trial_name: str) -> Path | None:
        """Return the directory of a complete trial of the diagnosis; None if it is not there."""
        path = self.directory / DIAGNOSIS_DIRECTORY / trial_name
        return path if path.is_dir() else None

    def seconds_spent(self) -> float:
        """Return how long all complete trials took to train and to score."""
        return sum(trial.seconds_spent for trial in self.trials())

    def adapter_directory(self, trial_name: str) -> Path:
        """Return the directory of a trial's adapter, in PEFT's format.

        Raises:
            RankwiseError: there is no such directory.
        """
        path = self.trials_directory / trial_name / "adapter"
        if not path.is_dir():
            raise records.unreadable(path.parent, "it has no directory adapter/")
        return path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the sweep; return None if there is no such file."""
        return records.read_json(self.directory / name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the sweep atomically."""
        write_whole(self.directory / name, _json_bytes(content))

    def keep_choice(self, chosen: Mapping[str, Any]) -> None:
        """Write to ``sweep.json`` how trials train from now on, if that has changed.

        Raises:
            RankwiseError: the directory cannot be written.
        """
        record = records.read_sweep(self.directory)
        if record is not None and record.chosen != chosen:
            self.write_json("sweep.json", asdict(replace(record, chosen=chosen)))

    def write_best(self, trial_name: str | None) -> None:
        """Make ``best/`` a copy of a trial's adapter, or remove it where no rank was selected.

        Raises:
            RankwiseError: the trial has no adapter, or ``best/`` cannot be written.
        """
        best, partial = self.directory / "best", self.directory / f"{PARTIAL}best"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            if trial_name is not None:
                shutil.copytree(self.adapter_directory(trial_name), partial)
            if best.exists():
                shutil.rmtree(best)
            if trial_name is not None:
                os.replace(partial, best)
        except OSError as error:
            raise _cannot_write(best, error) from None

    def write_rank_pattern(self, adapter: Adapter | None) -> None:
        """Write the adapter with a rank for each layer, or remove the directory if None."""
        shutil.rmtree(self.directory / RANK_PATTERN_DIRECTORY, ignore_errors=True)
        if adapter is not None:
            write_adapter(adapter, self.directory / RANK_PATTERN_DIRECTORY)


def refuse_bad_directory(directory: Path) -> None:
    """Refuse a path that cannot be a sweep directory.

    Raises:
        RequestError: the path is a file, or a directory with other things in it.
    """
    out, advice = f"out {str(directory)!r}", "name a new or empty directory"
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"{out} is a file; {advice}")
    if not directory.is_dir() or (directory / "sweep.json").exists():
        return
    for name in sorted(path.name for path in directory.iterdir()):
        if name != "trials" and not name.startswith("."):
            raise RequestError(f"{out} holds other files ({name}) and no sweep; {advice}")


def can_resume(directory: Path, record: SweepRecord, *, extend: bool) -> bool:
    """Return whether a directory holds a sweep of the same request.

    A sweep without a complete trial does not block its directory for another request.

    Raises:
        RequestError: the directory holds trials of another request.
    """
    before = records.read_sweep(directory)
    if before is None:
        return False
    change = _first_change(directory, before, record, extend=extend)
    if change is not None and records.trial_directories(directory):
        raise RequestError(f"out {str(directory)!r} holds a sweep with another request: {change}")
    return change is None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a sweep atomically: a reader finds the old content or the new, never a part.

    Raises:
        RankwiseError: the file cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        _write(partial, content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError, kept: str = "") -> RankwiseError:
    return RankwiseError(
        f"cannot write {str(path)!r}: {error.strerror or error}; "
        f"{kept}complete trials are kept, and the same command resumes from them"
    )


def _first_change(
    directory: Path, before: SweepRecord, now: SweepRecord, *, extend: bool
) -> str | None:
    """Return the first difference between two requests with its remedy; None if they are equal.

    Paths, versions and hardware may differ.
    """
    advice = "give the same request, or another out"
    settings = _differences(before.settings, now.settings)
    files = _differences(asdict(before.fingerprints), asdict(now.fingerprints))
    for name, (old, new) in settings.items():
        if name == "seeds" and new > old:
            if extend:
                continue
            advice += "; or add the new ones with --extend"
        elif set(settings) <= set(DECISION_SETTINGS) and not files:
            # All options: the sweep's values need not be the command's defaults.
            options = f"--margin {now.settings['margin']} --confidence {now.settings['confidence']}"
            if now.settings.get("no_prior"):
                options += " --no-prior"
            command = f"rankwise analyze {shlex.quote(str(directory))} {options}"
            advice += f"; or decide again without training: {command}"
        return f"{name} is {new}, was {old}; {advice}"
    if files:
        return f"{next(iter(files))} is not the same as before; {advice}"
    return None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of every entry that changed."""
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _trial_files(finished: FinishedTrial, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the contents of a trial's files by their paths in its directory."""
    from safetensors.torch import save

    # What a trial was made from is left out where it is None.
    trial = {name: value for name, value in asdict(finished.trial).items() if value is not None}
    if finished.failed is not None:
        trial["failed"] = finished.failed
    adapter = {}
    if finished.adapter:
        adapter = {
            "adapter/adapter_config.json": _json_bytes(finished.adapter_config),
            "adapter/adapter_model.safetensors": save(finished.adapter, {"format": "pt"}),
        }
    adapter_bytes = len(adapter.get("adapter/adapter_model.safetensors", b""))
    rows = [*finished.steps, _summary(finished, adapter_bytes=adapter_bytes)]
    lines = [json.dumps(json_value(row)) + "\n" for row in rows]
    return {
        "config.json": _json_bytes({**trial, **settings}),
        "metrics.jsonl": "".join(lines).encode(),
        "evidence.parquet": _evidence_bytes(finished),
        **adapter,
    }


def _summary(finished: FinishedTrial, *, adapter_bytes: int) -> dict[str, Any]:
    """Return the last line of a trial's ``metrics.jsonl``."""
    evidence, diverged = finished.evidence, finished.diverged
    return {
        "step": len(finished.steps),
        "diverged": diverged,
        "eval_loss": None if diverged else float(evidence["loss"].mean()),
        "eval_score": None if diverged else float(evidence["score"].mean()),
        **token_means(evidence),
        "trainable_params": finished.trainable_params,
        "adapter_bytes": adapter_bytes,
        "train_seconds": finished.train_seconds,
        "pack_seconds": finished.pack_seconds,
        "pack_size": finished.pack_size,
        "eval_seconds": finished.eval_seconds,
        "peak_memory_bytes": finished.peak_memory_bytes,
    }


def _evidence_bytes(finished: FinishedTrial) -> bytes:
    """Return a trial's ``evidence.parquet``; a diverged trial has a single row without a loss."""
    frame = finished.evidence
    if finished.diverged:
        frame = pd.DataFrame({"example_id": [-1], "loss": [math.nan], "score": [0.0]})
    trial = {name: getattr(finished.trial, name) for name in ("rank", "seed", "learning_rate")}
    frame = frame.assign(**trial, diverged=finished.diverged)
    if finished.trial.starts_from is not None:
        frame = frame.assign(**{HEALED: True})
    further = [name for name in frame.columns if name not in EVIDENCE_COLUMNS]
    buffer = io.BytesIO()
    frame[[*EVIDENCE_COLUMNS, *further]].to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
