"""The progress of a sweep on stderr."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console, RenderableType
from rich.text import Text

from rankwise.escaping import terminal
from rankwise.formatting import seconds
from rankwise.report.style import print_lines

if TYPE_CHECKING:
    from rankwise.engine.trial import FinishedTrial


class _Bar(progress.Progress):
    """A bar with the last lines that trials printed below it."""

    def __init__(self, *columns: progress.ProgressColumn, **options: Any) -> None:
        self.logs: dict[str, Sequence[str]] = {}  # by trial
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for lines in list(self.logs.values()):
            for line in lines:
                shown = terminal(Text.from_ansi(line).plain)  # without the trainer's colours
                yield Text(f"  {shown}", style="dim", no_wrap=True, overflow="ellipsis")


class _TimeLeft(progress.TimeRemainingColumn):
    """The time left; that this is the first trial where it is not known yet."""

    def render(self, task: progress.Task) -> Text:
        if task.time_remaining is None:
            return Text("first trial")
        return Text.assemble("left ", super().render(task))


class ProgressBar:
    """A progress bar with the time left and a line for each finished trial, on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = _Bar(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:.1f} of {task.total:.0f} trials"),
            progress.TimeElapsedColumn(),
            _TimeLeft(),
            console=self.console,
            transient=True,
            # Trials are few and alike, so the speed is estimated from all of them.
            speed_estimate_period=3600,
        )
        self._task: progress.TaskID | None = None
        self._complete = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        if self._task is not None:  # stopping a bar that was never shown prints an empty line
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        print_lines(self.console, text)

    def plan(self, complete: int, expected: int) -> None:
        """Set the length of the bar: the trials that the sweep expects and that are incomplete."""
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

    def log(self, trial: str, lines: Sequence[str]) -> None:
        """Show the last lines that a trial printed below the bar; none once it has ended."""
        self._bar.logs.pop(trial, None)
        if lines:
            self._bar.logs[trial] = lines

    def trial(self, finished: "FinishedTrial") -> None:
        """Print the result of a finished trial."""
        trial = finished.trial
        outcome = "diverged" if finished.failed is None else "failed"
        if not finished.diverged:
            means = finished.evidence[["loss", "score"]].mean()
            outcome = f"held-out loss {means['loss']:.4f}, score {means['score']:.4f}"
        rank = f"r={trial.rank:<4d}"
        if trial.truncated_from is not None:
            self.note(f"{rank} truncated from {trial.truncated_from}: {outcome}")
            return
        setup = f"learning rate {trial.learning_rate:<8g} seed {trial.seed}"
        self.note(f"{rank} {setup}: {outcome}, {seconds(finished.train_seconds)}")
