"""The sweep directory: locked by one process, written atomically, resumed exactly."""

import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from rankwise.decide.evidence import HEALED
from rankwise.engine.trial import FinishedTrial
from rankwise.errors import RequestError, ran_out
from rankwise.formatting import json_value
from rankwise.store import records
from rankwise.store.checkpoints import CheckpointDirectory
from rankwise.store.conclusion import CONCLUSION, DECISION
from rankwise.store.costs import token_means
from rankwise.store.digests import SEAL, SUMS, json_bytes, sealed_bytes, sums_bytes
from rankwise.store.durable import (
    PARTIAL,
    cannot_write,
    remove,
    rename,
    sync_directory,
    write_files,
    write_whole,
)
from rankwise.store.records import EVIDENCE_COLUMNS, SweepRecord, TrialRecord
from rankwise.store.resuming import can_resume, refuse_bad_directory
from rankwise.store.trial_files import (
    ADAPTER_CONFIG,
    REQUEST,
    SOURCE,
    adapter_digest,
    check_adapter,
    is_outdated,
    source_of,
    take_over,
)

FAILED = ".failed-"  # begins the names of trials that were taken back
DIAGNOSIS_DIRECTORY = "diagnosis"  # of trials that no decision on ranks sees
DERIVED = (
    *reversed(CONCLUSION), DIAGNOSIS_DIRECTORY, records.UNTRAINED_FILE, "reported.json",
    "train_data.jsonl", "tensorboard",
)  # fmt: skip
"""What a directory holds of one request besides its trials."""


class SweepStore:
    """A sweep's directory, locked by one process at a time.

    A trial is written under a temporary name and then renamed. So a sweep that is killed at any
    moment leaves complete trials only, and resumes with the next one, from its last checkpoint if
    it has one.

    Attributes:
        checkpoints: trials in training.
        request: digest that each trial carries.
        notes: what the user should know of the directory.

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
        self.request = record.digest
        self.notes: list[str] = []
        out = f"out {str(directory)!r}"
        refuse_bad_directory(directory)
        with _refusing_unwritable(out):
            self.trials_directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RequestError(f"{out} is in use by another running sweep") from None
        try:
            with _refusing_unwritable(out):
                self._begin(record, extend=extend)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, record: SweepRecord, *, extend: bool) -> None:
        """Clear what a killed sweep or another request left, and write the request."""
        directory = self.directory
        for folder in (directory, self.trials_directory, directory / DIAGNOSIS_DIRECTORY):
            for leftover in folder.glob(f"{PARTIAL}*"):
                remove(leftover)
        self.checkpoints = CheckpointDirectory(directory / ".unfinished", record.environment)
        resumed = can_resume(directory, record, extend=extend)
        is_earlier = resumed and records.is_of_earlier_version(directory)
        if not resumed:
            self._clear_derived()
        elif is_earlier:
            self._take_over(record)
        if self.read_json(records.UNTRAINED_FILE) is None:  # damaged, if it is there
            remove(directory / records.UNTRAINED_FILE)
        self._sources = {
            trial.name: source
            for trial in records.trial_directories(directory)
            if (source := source_of(trial)) is not None
        }
        self._take_back_outdated()
        before = records.read_sweep(directory)
        self._record = record
        if resumed and not extend and not is_earlier and before is not None:
            self._record = replace(before, machine=record.machine, chosen=record.chosen)
        if is_earlier or self._record != before:
            self.write_json("sweep.json", asdict(self._record))

    def __enter__(self) -> "SweepStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _clear_derived(self) -> None:
        """Remove all that was derived from another request's trials, before this one begins."""
        self.checkpoints.clear()
        for name in DERIVED:
            remove(self.directory / name)
        for failed in self.trials_directory.glob(f"{FAILED}*"):
            remove(failed)

    def _take_over(self, record: SweepRecord) -> None:
        """Give the trials of a directory of an earlier version their digests."""
        diagnosis = (self.directory / DIAGNOSIS_DIRECTORY).glob("[!.]*")
        trials = [*records.trial_directories(self.directory), *diagnosis]
        for trial in trials:
            take_over(trial, self.request, record.settings)
        if trials:
            self.notes.append(
                f"the directory's {len(trials)} trials are of an earlier version, which kept no "
                "digests: they are taken over, because settings, data and model are the same"
            )
            if record.settings.get("learning_rate") == "auto":
                self.notes[-1] += (
                    "; the search for learning rates has changed since, so further trials may be "
                    "trained, even where the sweep was finished"
                )
            for name in (DECISION, records.UNTRAINED_FILE):  # sweep.json is about to get a digest
                with suppress(RequestError, ValueError):
                    content = records.read_json(self.directory / name)
                    if content is not None and SEAL not in content:
                        self.write_json(name, content)

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
        entries = {**settings, REQUEST: self.request}
        start = finished.trial.truncated_from or finished.trial.starts_from
        if start is not None and (digest := adapter_digest(parent / start)) is not None:
            entries[SOURCE], self._sources[name] = digest, start
        try:
            contents = _trial_files(finished, entries)
            write_files(partial, {**contents, SUMS: sums_bytes(contents)})
            for file, source in finished.files.items():
                os.replace(source, partial / file)
            sync_directory(partial)
            rename(partial, parent / name)
            for source in finished.files.values():
                shutil.rmtree(source.parent, ignore_errors=True)
            self.checkpoints.forget(self.trial_names())
            if name in self._sources.values():
                self._take_back_outdated()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = f"the {len(self.trial_names())} "
            raise cannot_write(parent / name, error, kept) from None

    def take_back(self, name: str) -> None:
        """Take a trial out of the sweep, so that it will run again; its files are kept."""
        kept = self.trials_directory / f"{FAILED}{name}"
        shutil.rmtree(kept, ignore_errors=True)
        rename(self.trials_directory / name, kept)

    def _take_back_outdated(self) -> None:
        """Take back what was cut or healed from adapters that were trained anew to other values."""
        trials, taken = self.trials_directory, set[str]()
        while outdated := [
            name
            for name, source in self._sources.items()
            if source in taken or is_outdated(trials / name, trials / source)
        ]:
            for name in outdated:
                del self._sources[name]
                if (trials / name).is_dir():
                    self.take_back(name)
            taken.update(outdated)

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
        """Return the directory of a trial's adapter, in PEFT's format, once its digests agree.

        Raises:
            RankwiseError: there is no such directory, or a file in it is damaged.
        """
        return check_adapter(self.trials_directory / trial_name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file that can be made anew; None if there is none, or a damaged one."""
        with suppress(RequestError):
            return records.read_sealed(self.directory / name)
        return None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the sweep atomically, with its digest."""
        write_whole(self.directory / name, sealed_bytes(content))

    def keep_choice(self, chosen: Mapping[str, Any]) -> None:
        """Write to ``sweep.json`` how trials train from now on, if that has changed.

        Raises:
            RankwiseError: the directory cannot be written.
        """
        if self._record.chosen != chosen:
            self._record = replace(self._record, chosen=chosen)
            self.write_json("sweep.json", asdict(self._record))


@contextmanager
def _refusing_unwritable(out: str) -> Iterator[None]:
    """Report that a directory cannot be written; a full disk goes through as what it is."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        if ran_out(error) is not None:
            raise
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{out} cannot be written: {reason}") from None


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
            ADAPTER_CONFIG: json_bytes(finished.adapter_config),
            "adapter/adapter_model.safetensors": save(finished.adapter, {"format": "pt"}),
        }
    adapter_bytes = len(adapter.get("adapter/adapter_model.safetensors", b""))
    rows = [*finished.steps, _summary(finished, adapter_bytes=adapter_bytes)]
    lines = [json.dumps(json_value(row)) + "\n" for row in rows]
    return {
        "config.json": json_bytes({**trial, **settings}),
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
