"""A function of the user as the trainer: each trial is a call, in this process or in a child."""

import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.engine.trial import FinishedTrial, Trial, no_evidence
from rankwise.errors import RankwiseError, RequestError
from rankwise.trainers.engine import (
    OUT,
    Judge,
    Judged,
    Launch,
    ShownProgress,
    count_failure,
    finished_trial,
)
from rankwise.trainers.failures import Failures
from rankwise.trainers.left_adapter import UnusableTrialError

if TYPE_CHECKING:
    from rankwise.lora.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class FunctionTrial(Trial):
    """A trial as a function gets it."""

    out: Path  # a directory of its own for what it leaves
    train_data: Path | None = None  # JSON lines of the training rows; None without data


TrainFunction = Callable[[FunctionTrial], Any]
"""Trains one trial; returns the path of an adapter, a PeftModel, or a mapping of metrics."""


def told(trial: Trial, launch: Launch) -> FunctionTrial:
    """Return a trial as its function gets it."""
    out = (launch.place(trial) / OUT).absolute()
    data = None if launch.train_data is None else launch.train_data.absolute()
    return FunctionTrial(**vars(trial), out=out, train_data=data)


class FunctionEngine:
    """Trains each trial by a function in this process, and has it judged.

    Args:
        function: the function.
        judge: turns what it returns into evidence.
        launch: where trials are, and the training rows.
        progress: receives the work done.
        failures: failures of trials so far.
    """

    pack_size = 1

    def __init__(
        self,
        function: TrainFunction,
        judge: Judge,
        launch: Launch,
        progress: ShownProgress,
        failures: Failures,
    ) -> None:
        self.function = function
        self.judge = judge
        self.score = judge.score
        self.launch = launch
        self.progress = progress
        self.failures = failures

    def train(
        self, trials: Sequence[Trial], starts: "Mapping[str, Adapter] | None" = None
    ) -> Generator[FinishedTrial, None, None]:
        """Call the function for each trial.

        Raises:
            RequestError: a trial is to start from another's adapter.
            RankwiseError: two different trials failed alike.
        """
        if any(trial.starts_from is not None for trial in trials):
            raise RequestError("a function cannot start a trial from another's adapter")
        for trial in trials:
            yield self._train_one(trial, self.launch.new_place(trial))

    def _train_one(self, trial: Trial, place: Path) -> FinishedTrial:
        judged, failed = Judged(evidence=no_evidence(), diverged=True), None
        began = time.monotonic()
        try:
            left = keep(self.function(told(trial, self.launch)), place / OUT)
        except UnusableTrialError as error:
            failed = str(error)
        except RankwiseError:
            raise
        except Exception as error:  # whatever the user's function raises is its trial's failure
            failed = f"it raised {type(error).__name__}: {' '.join(str(error).split())}"
        trained = time.monotonic()
        if failed is None:
            try:
                judged = self.judge.judge(trial, left)
            except UnusableTrialError as error:
                failed = str(error)
        self.progress.work(1.0)
        if failed is not None:
            count_failure(self.failures, trial.name, failed, place, ".")
        files = {OUT: place / OUT}
        ended = time.monotonic()
        times = (trained - began, ended - trained)
        return finished_trial(trial, judged, failed, times, files)


def keep(result: Any, out: Path) -> Path:
    """Return the directory with what a function returned; write it there if it is no path.

    Raises:
        UnusableTrialError: it is none of what a function may return.
    """
    if isinstance(result, str | os.PathLike):
        return Path(result)
    if isinstance(result, Mapping):
        row = {str(name): float(value) for name, value in result.items()}
        (out / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return out
    if hasattr(result, "peft_config") and hasattr(result, "save_pretrained"):
        result.save_pretrained(out)
        return out
    raise UnusableTrialError(
        f"the function returned a {type(result).__name__}; allowed are the path of an adapter, a "
        "PeftModel, and a mapping of metrics"
    )
