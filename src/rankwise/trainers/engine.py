"""The user's own trainer as an engine: a command for each trial, judged by what it leaves."""

import os
import shutil
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from rankwise.engine.trial import FinishedTrial, TrainingProgress, Trial, no_evidence
from rankwise.errors import RequestError
from rankwise.store.directory import FAILED
from rankwise.trainers.child import (
    POLL_SECONDS,
    Child,
    end_leftover,
    ending_on_signals,
    last_lines,
    log_end,
    stop_all,
)
from rankwise.trainers.failures import Failures
from rankwise.trainers.gpus import gpu_environments
from rankwise.trainers.left_adapter import UnusableTrialError
from rankwise.trainers.log_progress import LogProgress
from rankwise.trainers.tools import Trainer

if TYPE_CHECKING:
    import torch

    from rankwise.lora.adapter import Adapter
    from rankwise.tasks.base import Encoded

LOG, OUT = "log.txt", "out"
RUNNING = ".running-"
SHOWN_LINES = 3  # of a log, while it grows
KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)  # as shells report a killed command
MOST_DONE = 0.95  # share of a trial that its time or its log can show


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a trial left; see `rankwise.engine.trial.FinishedTrial` for the fields.

    One that diverged may say how in ``failed``; trials that diverge alike do not end a sweep, as
    others may have lower rates.
    """

    evidence: pd.DataFrame
    diverged: bool = False
    adapter_config: dict[str, Any] = field(default_factory=dict)
    adapter: "dict[str, torch.Tensor]" = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    failed: str | None = None


DIVERGED = Judged(
    evidence=no_evidence(), diverged=True, failed="its adapter has weights that are not finite"
)


class Judge(Protocol):
    """Turns what a trial left into evidence."""

    def judge(self, trial: Trial, out: Path) -> Judged:
        """Return the evidence of a trial that ended well; raise UnusableTrialError if none."""
        ...

    def score(
        self, adapters: "Sequence[Adapter]", examples: "Encoded | None" = None
    ) -> list[pd.DataFrame]:
        """Return the evidence of adapters on examples, by default the held-out ones."""
        ...


class ShownProgress(TrainingProgress, Protocol):
    """A receiver of what a trainer does, which can show what it prints."""

    def log(self, trial: str, lines: Sequence[str]) -> None:
        """Receive the last lines that a trial printed; none once it has ended."""
        ...


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the trials of a sweep are launched.

    Attributes:
        command: the command line with its placeholders, or a tool with its file.
        trials: directory of the sweep's trials.
        at_once: number of trials that run at once.
        timeout: seconds after which a trial is stopped; None for never.
        train_data: file of the training examples; None if the command does not ask for it.
        noun: word for what runs.
    """

    command: Trainer
    trials: Path
    at_once: int = 1
    timeout: float | None = None
    train_data: Path | None = None
    noun = "command"

    def place(self, trial: Trial) -> Path:
        """Return the directory of a trial until it is judged."""
        return self.trials / f"{RUNNING}{trial.name}"

    def new_place(self, trial: Trial) -> Path:
        """Return the directory of a trial, made anew, with one for what it leaves."""
        place = self.place(trial)
        for leftover in (place, place.with_name(f"{FAILED}{trial.name}")):
            shutil.rmtree(leftover, ignore_errors=True)
        (place / OUT).mkdir(parents=True)
        return place

    def values(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial by the names of the placeholders."""
        return {
            "rank": trial.rank,
            "lora_alpha": trial.lora_alpha,
            "learning_rate": trial.learning_rate,
            "seed": trial.seed,
            "use_rslora": trial.use_rslora,
            "out": str((self.place(trial) / OUT).absolute()),
            "trial": trial.name,
            "train_data": "" if self.train_data is None else str(self.train_data.absolute()),
        }

    def config(self, trial: Trial) -> Path:
        """Return the file that holds a trial's values."""
        return self.place(trial) / self.command.config_name

    def words(self, trial: Trial) -> list[str]:
        """Return the command of a trial."""
        texts = {name: as_word(value) for name, value in self.values(trial).items()}
        texts["config"] = str(self.config(trial).absolute())
        return self.command.fill(texts)

    def prepare(self, trial: Trial) -> list[str]:
        """Write the files that the command of a trial reads, and return the command."""
        text = self.command.config_text(self.values(trial))
        self.config(trial).write_text(text)
        return self.words(trial)

    def left(self, trial: Trial) -> Path:
        """Return the directory with what a trial left."""
        return self.place(trial) / OUT


def as_word(value: object) -> str:
    """Return a value as command lines and YAML have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class RunningTrial:
    """A trial whose command runs."""

    trial: Trial
    place: Path
    child: Child
    attempt: int
    started: float = field(default_factory=time.monotonic)
    reported: float = 0.0  # share of its work
    progress: LogProgress = field(default_factory=LogProgress)

    @property
    def seconds(self) -> float:
        """Time since its start."""
        return time.monotonic() - self.started

    @property
    def log(self) -> Path:
        """File of its output."""
        return self.place / LOG


class TrainerEngine:
    """Trains each trial by the user's command, and has it judged.

    Args:
        launch: how trials are launched.
        judge: turns what a trial leaves into evidence.
        progress: receives notes, the work done, and the last lines of each log.
        failures: failures of trials so far.
        seconds: times of complete trials, by which the time left is estimated.

    Raises:
        RequestError: more trials are to run at once than there are GPUs.
    """

    def __init__(
        self,
        launch: Launch,
        judge: Judge,
        progress: ShownProgress,
        failures: Failures,
        seconds: Sequence[float] = (),
    ) -> None:
        self.launch = launch
        self.judge = judge
        self.score = judge.score
        self.progress = progress
        self.failures = failures
        self._seconds = list(seconds)
        self._environments = gpu_environments(launch.at_once)
        for place in launch.trials.glob(f"{RUNNING}*"):
            end_leftover(place)

    @property
    def pack_size(self) -> int:
        """Number of trials that run at once."""
        return self.launch.at_once

    def train(
        self, trials: Sequence[Trial], starts: "Mapping[str, Adapter] | None" = None
    ) -> Generator[FinishedTrial, None, None]:
        """Run the command of every trial, and yield each trial as soon as it is judged.

        Raises:
            RequestError: a trial is to start from another's adapter.
            RankwiseError: two different trials failed alike.
        """
        if any(trial.starts_from is not None for trial in trials):
            raise RequestError("a trainer of your own cannot start a trial from another's adapter")
        waiting, together = list(trials), min(len(trials), self.pack_size)
        running: dict[int, RunningTrial] = {}  # by its place among those that run at once
        with ending_on_signals():
            try:
                while waiting or running:
                    for slot in range(self.pack_size):
                        if waiting and slot not in running:
                            running[slot] = self._start(waiting.pop(0), slot)
                    for slot, each in list(running.items()):
                        code = each.child.exit_code()
                        if code is None and not self._is_overdue(each):
                            self._show(each)
                            continue
                        del running[slot]
                        if self._may_run_again(each, code):
                            running[slot] = self._start(each.trial, slot, each)
                            continue
                        yield self._finish(each, code, together)
                    time.sleep(POLL_SECONDS)
            finally:
                stop_all([each.child for each in running.values()])

    def _start(self, trial: Trial, slot: int, before: RunningTrial | None = None) -> RunningTrial:
        """Start a trial's command in a new directory."""
        place = self.launch.new_place(trial)
        words = self.launch.prepare(trial)
        child = Child(words, place / LOG, self._environments[slot], place)
        attempt = 1 if before is None else before.attempt + 1
        reported = 0.0 if before is None else before.reported
        return RunningTrial(trial, place, child, attempt, reported=reported)

    def _is_overdue(self, running: RunningTrial) -> bool:
        limit = self.launch.timeout
        return limit is not None and running.seconds > limit

    def _show(self, running: RunningTrial) -> None:
        """Show the last lines of a log, and the share of the trial that is done.

        The time of earlier trials tells it, and in a first trial the log if it can.
        """
        self.progress.log(running.trial.name, last_lines(running.log, SHOWN_LINES))
        if self._seconds:
            share: float | None = running.seconds / fmean(self._seconds)
        else:
            share = running.progress.share(log_end(running.log))
        if share is not None:
            self._report(running, min(MOST_DONE, share))

    def _report(self, running: RunningTrial, done: float) -> None:
        if done != running.reported:  # less where its log told of other steps before
            self.progress.work(done - running.reported)
            running.reported = done

    def _may_run_again(self, running: RunningTrial, code: int | None) -> bool:
        """Whether a command was killed for the first time, for its memory or by a scheduler."""
        killed = code is not None and (code < 0 or code in KILLED)
        if not killed or running.attempt > 1:
            return False
        self.progress.note(
            f"{running.trial.name}: {_ending(code, self.launch.noun)}; it is tried once more"
        )
        return True

    def _finish(self, running: RunningTrial, code: int | None, together: int) -> FinishedTrial:
        """Judge a trial whose command ended, or stop it if it took too long (code None)."""
        seconds, failed = running.seconds, None
        judged = Judged(evidence=no_evidence(), diverged=True)
        if code is None:
            stop_all([running.child])
            failed = f"it took longer than trial_timeout, {seconds / 60:.3g} minutes"
        elif code != 0:
            failed = _ending(code, self.launch.noun)
        began = time.monotonic()
        _restore(running.place)
        try:
            if failed is None:
                judged = self.judge.judge(running.trial, self.launch.left(running.trial))
        except UnusableTrialError as error:
            failed = str(error)
        self.progress.log(running.trial.name, [])
        self._report(running, 1.0)
        if failed is not None:
            failed = self._failure(running, failed)
        else:
            self._seconds.append(seconds)
        files = {name: running.place / name for name in (LOG, OUT)}
        times = (seconds, time.monotonic() - began)
        return replace(
            finished_trial(running.trial, judged, failed, times, files), pack_size=together
        )

    def _failure(self, running: RunningTrial, reason: str) -> str:
        """Return how a trial failed, with the last line of its log.

        Raises:
            RankwiseError: another trial failed alike, so that a third would too.
        """
        name, lines = running.trial.name, last_lines(running.log, 1)
        failure = f"{reason}: {lines[0]}" if lines else reason
        count_failure(self.failures, name, failure, running.place, LOG)
        return failure


def count_failure(failures: Failures, name: str, failure: str, place: Path, shown: str) -> None:
    """Count a trial's failure; keep its directory aside if it is the second of its kind.

    Args:
        failures: failures of trials so far.
        name: name of the trial.
        failure: how it failed.
        place: its directory.
        shown: what the error names of its directory; "." for the whole.

    Raises:
        RankwiseError: another trial failed alike.
    """
    if others := failures.add(name, failure):
        kept = place.with_name(f"{FAILED}{name}")
        os.replace(place, kept)
        raise failures.stop(others, name, kept / shown)


def finished_trial(
    trial: Trial,
    judged: Judged,
    failed: str | None,
    seconds: tuple[float, float],
    files: Mapping[str, Path],
) -> FinishedTrial:
    """Return a trial that a trainer of the user ran alone; ``seconds`` are training and judging."""
    return FinishedTrial(
        trial=trial,
        diverged=judged.diverged,
        trainable_params=sum(value.numel() for value in judged.adapter.values()),
        train_seconds=seconds[0],
        pack_seconds=seconds[0],
        pack_size=1,
        eval_seconds=seconds[1],
        peak_memory_bytes=0,
        adapter_config=judged.adapter_config,
        adapter=judged.adapter,
        evidence=judged.evidence,
        steps=judged.steps,
        failed=failed or judged.failed,
        files=files,
    )


def _restore(place: Path) -> None:
    """Make the log and the directory of a trial anew if its command removed them: it left none."""
    out = place / OUT
    if not out.is_dir():
        out.unlink(missing_ok=True)
        out.mkdir(parents=True)
    (place / LOG).touch()


def _ending(code: int | None, noun: str) -> str:
    """Return how a command ended."""
    if code is not None and code < 0:
        return f"its {noun} was killed by {signal.Signals(-code).name}"
    return f"its {noun} ended with exit code {code}"
