"""The sweep directory: locked by one process, written atomically, resumed exactly."""

import io
import json
import math
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from rankwise.errors import RankwiseError, RequestError
from rankwise.store.costs import token_means
from rankwise.store.records import (
    EVIDENCE_COLUMNS,
    UNTRAINED_FILE,
    SweepRecord,
    TrialRecord,
    read_evidence,
    read_json,
    read_sweep,
    read_train_losses,
    read_trials,
    trial_directories,
    unreadable,
)

if TYPE_CHECKING:
    from rankwise.engine.trial import FinishedTrial
    from rankwise.lora.adapter import Adapter

PARTIAL = ".partial-"
RANK_PATTERN_DIRECTORY = "best-rank-pattern"
DECISION_SETTINGS = ("margin", "confidence")  # they affect the decision, not the trials


class SweepStore:
    """A sweep's directory, held by one process at a time.

    A trial is written under a temporary name and then renamed. So a sweep that is killed at any
    moment leaves complete trials only, and resumes with the next one.

    Args:
        directory: the sweep directory; it is created if it does not exist.
        record: the request. An existing directory must belong to the same request, or hold no
            complete trial yet.
        extend: allow more seeds than in the directory's request. Trials do not depend on one
            another, so the result is the same as if the sweep had started with all seeds.

    Raises:
        RequestError: the directory cannot be used, belongs to another request, or is in use.
    """

    def __init__(self, directory: Path, record: SweepRecord, *, extend: bool = False) -> None:
        self.directory = directory
        self.trials_directory = directory / "trials"
        refuse_bad_directory(directory)
        try:
            self.trials_directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(
                f"out {str(directory)!r} is in use by another running sweep"
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"out {str(directory)!r} cannot be written: {reason}") from None
        try:
            for leftover in self.trials_directory.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover)
            resumed = can_resume(directory, record, extend=extend)
            if not resumed:
                (directory / UNTRAINED_FILE).unlink(missing_ok=True)
            if not resumed or extend:
                self.write_json("sweep.json", record.as_dict())
        except RankwiseError:
            self._lock.release()
            raise

    def __enter__(self) -> "SweepStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def add(self, finished: "FinishedTrial", settings: Mapping[str, Any]) -> None:
        """Store a finished trial under ``trials/``.

        Args:
            finished: the trial with its adapter and its measurements.
            settings: further entries of its ``config.json``.

        Raises:
            RankwiseError: the directory cannot be written; trials stored before stay as they are.
        """
        name = finished.trial.name
        partial = self.trials_directory / f"{PARTIAL}{name}"
        try:
            for file, content in _trial_files(finished, settings).items():
                _write(partial / file, content)
            os.replace(partial, self.trials_directory / name)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RankwiseError(
                f"cannot write {str(self.trials_directory / name)!r}: {error.strerror or error}; "
                f"the {len(self.trial_names())} complete trials are kept, and the same command "
                "resumes from them"
            ) from None

    def trial_names(self) -> list[str]:
        """Return the names of the complete trials."""
        return [path.name for path in trial_directories(self.directory)]

    def trials(
        self, *, rank: int | None = None, learning_rate: float | None = None
    ) -> list[TrialRecord]:
        """Return the complete trials, all or those of one rank and one learning rate."""
        return read_trials(self.directory, rank=rank, learning_rate=learning_rate)

    def evidence(self) -> pd.DataFrame:
        """Return the held-out results of all complete trials, see `read_evidence`."""
        return read_evidence(self.directory)

    def train_losses(self) -> pd.DataFrame:
        """Return the training losses of all complete trials, see `read_train_losses`."""
        return read_train_losses(self.directory)

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
            raise unreadable(path.parent, "it has no directory adapter/")
        return path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the sweep; return None if there is no such file."""
        return read_json(self.directory / name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the sweep atomically."""
        write_whole(self.directory / name, _json_bytes(content))

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
            raise RankwiseError(
                f"cannot write {str(best)!r}: {error.strerror or error}; complete trials are kept"
            ) from None

    def write_rank_pattern(self, adapter: "Adapter | None") -> None:
        """Write the adapter with a rank for each layer, or remove the directory if None."""
        from rankwise.lora.files import write_adapter

        shutil.rmtree(self.directory / RANK_PATTERN_DIRECTORY, ignore_errors=True)
        if adapter is not None:
            write_adapter(adapter, self.directory / RANK_PATTERN_DIRECTORY)


def refuse_bad_directory(directory: Path) -> None:
    """Refuse a path that cannot be a sweep directory.

    Raises:
        RequestError: the path is a file, or a directory with other things in it.
    """
    if directory.exists() and not directory.is_dir():
        raise RequestError(
            f"out {str(directory)!r} is a file; allowed is a directory, new or of the same sweep"
        )
    if not directory.is_dir() or (directory / "sweep.json").exists():
        return
    for path in directory.iterdir():
        if path.name != "trials" and not path.name.startswith("."):
            raise RequestError(
                f"out {str(directory)!r} holds other files ({path.name}) and no sweep; "
                "name a new or empty directory"
            )


def can_resume(directory: Path, record: SweepRecord, *, extend: bool) -> bool:
    """Return whether a directory holds a sweep of the same request.

    A sweep without a complete trial does not block its directory for another request.

    Raises:
        RequestError: the directory holds trials of another request.
    """
    before = read_sweep(directory)
    if before is None:
        return False
    try:
        _refuse_other_request(directory, before, record, extend=extend)
    except RequestError:
        if trial_directories(directory):
            raise
        return False
    return True


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
        raise RankwiseError(
            f"cannot write {str(path)!r}: {error.strerror or error}; complete trials are kept"
        ) from None


def _refuse_other_request(
    directory: Path, before: SweepRecord, now: SweepRecord, *, extend: bool
) -> None:
    """Refuse to resume a sweep under another request; paths, versions and hardware may differ."""
    change, remedy = None, ""
    for name, (old, new) in _differences(before.settings, now.settings).items():
        more_seeds = name == "seeds" and new > old
        if more_seeds and extend:
            continue
        change = f"{name} is {new}, was {old}"
        remedy = (
            "; or add the new ones with --extend"
            if more_seeds
            else _analyze_hint(directory, before, now)
        )
        break
    else:
        for name in _differences(asdict(before.fingerprints), asdict(now.fingerprints)):
            change = f"{name} is not the same as before"
            break
    if change is not None:
        raise RequestError(
            f"out {str(directory)!r} holds a sweep with another request: {change}; "
            f"give the same request, or another out{remedy}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of every entry that changed."""
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _analyze_hint(directory: Path, before: SweepRecord, now: SweepRecord) -> str:
    """Return the command that decides again, if only settings of the decision changed."""
    changed = _differences(before.settings, now.settings)
    if not set(changed) <= set(DECISION_SETTINGS) or before.fingerprints != now.fingerprints:
        return ""
    # All options: the sweep's values need not be the command's defaults.
    options = " ".join(f"--{name} {now.settings[name]}" for name in DECISION_SETTINGS)
    command = f"rankwise analyze {shlex.quote(str(directory))} {options}"
    return f"; or decide again without training: {command}"


def _trial_files(finished: "FinishedTrial", settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the contents of a trial's files by their paths in its directory."""
    from safetensors.torch import save

    trial = finished.trial
    config: dict[str, Any] = {
        "rank": trial.rank,
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "lora_alpha": trial.lora_alpha,
        "use_rslora": trial.use_rslora,
    }
    if trial.truncated_from is not None:
        config["truncated_from"] = trial.truncated_from
    weights = save(finished.adapter, metadata={"format": "pt"})
    rows = [*finished.steps, _summary(finished, adapter_bytes=len(weights))]
    lines = [json.dumps(_finite(row)) + "\n" for row in rows]
    return {
        "config.json": _json_bytes({**config, **settings}),
        "metrics.jsonl": "".join(lines).encode(),
        "evidence.parquet": _evidence_bytes(finished),
        "adapter/adapter_config.json": _json_bytes(finished.adapter_config),
        "adapter/adapter_model.safetensors": weights,
    }


def _summary(finished: "FinishedTrial", *, adapter_bytes: int) -> dict[str, Any]:
    """Return the last line of a trial's ``metrics.jsonl``."""
    means: dict[str, float | None] = {"eval_loss": None, "eval_score": None}
    if not finished.diverged:
        for name in ("loss", "score"):
            means[f"eval_{name}"] = float(finished.evidence[name].mean())
    return {
        "step": len(finished.steps),
        "diverged": finished.diverged,
        **means,
        **token_means(finished.evidence),
        "trainable_params": finished.trainable_params,
        "adapter_bytes": adapter_bytes,
        "train_seconds": finished.train_seconds,
        "pack_seconds": finished.pack_seconds,
        "pack_size": finished.pack_size,
        "eval_seconds": finished.eval_seconds,
        "peak_memory_bytes": finished.peak_memory_bytes,
    }


def _evidence_bytes(finished: "FinishedTrial") -> bytes:
    """Return a trial's ``evidence.parquet``; a diverged trial has a single row without a loss."""
    trial = finished.trial
    frame = finished.evidence
    if finished.diverged:
        frame = pd.DataFrame({"example_id": [-1], "loss": [float("nan")], "score": [0.0]})
    frame = frame.assign(
        rank=trial.rank,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        diverged=finished.diverged,
    )
    further = [name for name in frame.columns if name not in EVIDENCE_COLUMNS]
    buffer = io.BytesIO()
    frame[[*EVIDENCE_COLUMNS, *further]].to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON lacks, by null."""
    finite = dict(row)
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            finite[key] = None
    return finite


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
