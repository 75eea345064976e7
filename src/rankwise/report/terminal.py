"""Progress on stderr, the table and the decision at the end."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rankwise.decide import Decision, RankRow
from rankwise.report.words import interval, plain_bytes, plus_minus, seconds

if TYPE_CHECKING:
    from rankwise.engine.trial import FinishedTrial


class ProgressBar:
    """A bar with the time left, and a line for each finished trial, on stderr."""

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
            # The speed is that of all trials so far: trials are few and much alike.
            speed_estimate_period=3600,
        )
        self._task: TaskID | None = None
        self._complete = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:  # a bar that was never shown would still end in an empty line
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def plan(self, complete: int, expected: int) -> None:
        """Set the bar's length."""
        if complete >= expected:
            return
        if self._task is None:
            if complete:
                self.note(f"{complete} trials are complete; going on with the rest")
            self._task = self._bar.add_task("Training", total=expected - complete)
            self._complete = complete
            self._bar.start()
        self._bar.update(self._task, total=expected - self._complete)

    def work(self, share: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.advance(self._task, share)

    def trial(self, finished: "FinishedTrial") -> None:
        """Print a line about a finished trial."""
        trial = finished.trial
        if finished.diverged:
            outcome = "diverged"
        else:
            means = finished.evidence[["loss", "score"]].mean()
            outcome = f"held-out loss {means['loss']:.4f}, accuracy {means['score']:.1%}"
        self.note(
            f"r={trial.rank:<4d} learning rate {trial.learning_rate:<8g} seed {trial.seed}: {outcome}, "
            f"{seconds(finished.train_seconds)}"
        )


def print_decision(decision: Decision, console: Console | None = None) -> None:
    """Print the table and the decision in a sentence."""
    console = console or Console()
    table = Table(title=f"LoRA rank, {decision.confidence:.0%} intervals", title_justify="left")
    for name in (
        "rank",
        "trainable",
        "learning rate",
        "held-out loss",
        "accuracy",
        "train",
        "peak memory",
        "gain in loss",
    ):
        table.add_column(name, justify="right", overflow="fold")
    for row in decision.table:
        style = "bold green" if row.rank == decision.rank else None
        table.add_row(*_cells(row), style=style)
    if console.width < 100 and not console.is_terminal:
        console = Console(file=console.file, width=120)
    console.print(table)
    lines = [decision.reason if decision.rank is not None else f"Undetermined. {decision.reason}"]
    if decision.test is not None:
        test = decision.test
        lines.append(
            f"On {test.examples} test examples that no decision saw: loss {test.loss:.4f} {interval(test.loss_ci)}, "
            f"accuracy {test.score:.1%} {interval(test.score_ci, percent=True)}."
        )
    if decision.next is not None:
        lines.append(f"Next: {decision.next.advice}")
    lines += [f"Note: {warning}" for warning in decision.warnings]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _cells(row: RankRow) -> list[str]:
    if row.loss_mean is None or row.loss_ci is None or row.score_mean is None or row.score_ci is None:
        return [str(row.rank), _count(row.trainable_params), "", "diverged", "", "", "", ""]
    gain = row.gain_over_previous
    return [
        str(row.rank),
        _count(row.trainable_params),
        f"{row.learning_rate:g}" if row.learning_rate is not None else "",
        plus_minus(row.loss_mean, row.loss_ci),
        plus_minus(row.score_mean, row.score_ci, percent=True),
        seconds(row.train_seconds) if row.train_seconds is not None else "",
        plain_bytes(row.peak_memory_bytes) if row.peak_memory_bytes is not None else "",
        plus_minus(gain.loss, gain.loss_ci, sign=True) if gain is not None else "",
    ]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
