"""The progress of a sweep on stderr."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rankwise.formatting import seconds

if TYPE_CHECKING:
    from rankwise.engine.trial import FinishedTrial


class ProgressBar:
    """A progress bar with the time left and a line for each finished trial, on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f} of {task.total:.0f} trials"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
            # Trials are few and alike, so the speed is estimated from all of them.
            speed_estimate_period=3600,
        )
        self._task: TaskID | None = None
        self._complete = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:  # stopping a bar that was never shown prints an empty line
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def plan(self, complete: int, expected: int) -> None:
        """Set the length of the bar.

        Args:
            complete: trials that are complete already.
            expected: trials that the sweep will have.
        """
        if complete >= expected:
            return
        if self._task is None:
            if complete:
                self.note(f"{complete} trials are complete; continuing with the rest")
            self._task = self._bar.add_task("Training", total=expected - complete)
            self._complete = complete
            self._bar.start()
        self._bar.update(self._task, total=expected - self._complete)

    def work(self, share: float) -> None:
        """Advance the bar by a share of one trial."""
        if self._task is not None:
            self._bar.advance(self._task, share)

    def trial(self, finished: "FinishedTrial") -> None:
        """Print the result of a finished trial."""
        trial = finished.trial
        outcome = "diverged"
        if not finished.diverged:
            means = finished.evidence[["loss", "score"]].mean()
            outcome = f"held-out loss {means['loss']:.4f}, score {means['score']:.4f}"
        if trial.truncated_from is not None:
            self.note(f"r={trial.rank:<4d} truncated from {trial.truncated_from}: {outcome}")
            return
        self.note(
            f"r={trial.rank:<4d} learning rate {trial.learning_rate:<8g} seed {trial.seed}: "
            f"{outcome}, {seconds(finished.train_seconds)}"
        )
