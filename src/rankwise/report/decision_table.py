"""Progress on stderr, the table and the decision at the end."""

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
from rich.table import Table

from rankwise.decide import Decision
from rankwise.formatting import (
    figure,
    interval,
    is_share,
    limits,
    of_differences,
    plain_bytes,
    seconds,
    share,
    training_time,
)

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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
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
            outcome = f"held-out loss {means['loss']:.4f}, score {means['score']:.4f}"
        if trial.truncated_from is not None:
            self.note(f"r={trial.rank:<4d} cut from {trial.truncated_from}: {outcome}")
            return
        self.note(
            f"r={trial.rank:<4d} learning rate {trial.learning_rate:<8g} seed {trial.seed}: {outcome}, "
            f"{seconds(finished.train_seconds)}"
        )


def print_decision(
    decision: Decision, console: Console | None = None, *, score: str = "accuracy"
) -> None:
    """Print the table and the decision in sentences.

    Args:
        decision: of a sweep, or of others' results.
        console: where to; stdout if None.
        score: what the task score is called.
    """
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        console = Console(file=console.file, width=120)
    rows = cells(decision, score)
    table = Table(
        title=f"{_title(decision)}, {decision.confidence:.0%} intervals", title_justify="left"
    )
    # What nobody measured gets no column: others' results are often a single number for each rank.
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row, texts in zip(decision.table, rows, strict=True):
        # An interval in brackets stands below its figure, rather than broken where the column happens to end.
        lines = (texts[name].replace(" [", "\n[") for name in names)
        table.add_row(*lines, style="bold green" if row.rank == decision.rank else None)
    console.print(table)
    for line in sentences(decision, score):
        console.print(line, highlight=False, markup=False)


def _title(decision: Decision) -> str:
    if decision.question == "keep":
        return f"LoRA rank to keep of adapters trained at rank {decision.trained_at}"
    return "LoRA rank to train at"


def sentences(decision: Decision, score: str) -> list[str]:
    """Return what a decision says, a sentence or two each; ``score`` is what the task score is called."""
    lines = [decision.reason if decision.rank is not None else f"Undetermined. {decision.reason}"]
    if (
        decision.confirmation is not None and decision.confirmation.status != "contradicts"
    ):  # that is a warning
        lines.append(decision.confirmation.reason)
    if decision.rank_pattern is not None:
        lines.append(decision.rank_pattern.reason)
    if decision.test is not None:
        test, percent = decision.test, is_share(score)
        loss_ci = interval(test.loss_ci, within=limits("loss", [test.loss]))
        score_ci = interval(test.score_ci, percent=percent, within=limits(score, [test.score]))
        lines.append(
            f"On {test.examples} test examples that no decision saw: loss {test.loss:.4f} {loss_ci}, "
            f"{score} {share(test.score, percent)} {score_ci}."
        )
    # That a rank suffices is the usual case; the report has the numbers of all.
    telling = [one for one in decision.diagnosis if one.verdict not in ("rank suffices", "open")]
    lines += [f"{one.verdict.capitalize()}: {one.reason}" for one in telling]
    if decision.next is not None:
        lines.append(f"Next: {decision.next.advice}")
    time = training_time(decision.as_dict()["table"])
    return lines + [
        f"Note: {note}" for note in [*decision.warnings, *([] if time is None else [time])]
    ]


def cells(decision: Decision, score: str) -> list[dict[str, str]]:
    """Return each row's cells by their column, empty where nothing was measured.

    Args:
        decision: whose table it is.
        score: what the task score is called.
    """
    losses = limits("loss", [row.loss_mean for row in decision.table])
    scores = limits(score, [row.score_mean for row in decision.table])
    # Others' accuracies may be in percent already.
    percent = is_share(score) and all(
        row.score_mean is None or row.score_mean <= 1 for row in decision.table
    )
    by_loss = decision.metric == "loss"
    rows = []
    for row in decision.table:
        gained, gained_ci = None, None
        if row.gain_over_previous is not None:
            gain = row.gain_over_previous
            gained, gained_ci = (
                (gain.loss, gain.loss_ci) if by_loss else (gain.score, gain.score_ci)
            )
        dead = "diverged" if not row.seeds else ""
        rows.append(
            {
                "rank": str(row.rank),
                "trainable": "" if row.trainable_params is None else f"{row.trainable_params:,}",
                "learning rate": "" if row.learning_rate is None else f"{row.learning_rate:g}",
                "held-out loss": figure(row.loss_mean, row.loss_ci, within=losses)
                or (dead if by_loss else ""),
                score: figure(row.score_mean, row.score_ci, percent=percent, within=scores)
                or (dead if not by_loss else ""),
                "train": "" if row.train_seconds is None else seconds(row.train_seconds),
                "peak memory": ""
                if row.peak_memory_bytes is None
                else plain_bytes(row.peak_memory_bytes),
                f"gain in {'loss' if by_loss else score}": figure(
                    gained,
                    gained_ci,
                    sign=True,
                    within=of_differences(losses if by_loss else scores),
                ),
            }
        )
    return rows
