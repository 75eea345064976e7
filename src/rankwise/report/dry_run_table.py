"""A dry run in the terminal: the trials, memory and time that a sweep would take."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rankwise.escaping import terminal
from rankwise.formatting import plain_bytes, seconds
from rankwise.planning.planned_sweep import DryRun
from rankwise.report.style import GREEN, new_table, print_lines, wide_console
from rankwise.tasks.preview import CLOSE, OPEN, ShownExample


def print_dry_run(planned: DryRun, console: Console | None = None) -> None:
    """Print the memory and time of each rank, and the time of the whole sweep."""
    console = wide_console(console)
    table = new_table(f"Planned sweep, strategy {planned.strategy}")
    for name in ("rank", "memory", "training time", "evaluation time", "first learning rates"):
        table.add_column(name, justify="right")
    for row in planned.ranks:
        table.add_row(
            str(row.rank),
            "unknown" if row.memory_bytes is None else plain_bytes(row.memory_bytes),
            _time(row.train_seconds),
            _time(row.eval_seconds),
            ", ".join(f"{rate:g}" for rate in row.first_rates) or "-",
        )
    console.print(table)
    if planned.commands:
        print_lines(console, "The trials that run first:", *planned.commands)
    _print_examples(console, planned.examples)
    print_lines(console, *_summary(planned), "Nothing was written.")


def _print_examples(console: Console, examples: Sequence[ShownExample]) -> None:
    """Print examples as the model will see them; marks show what is learnt without colours too."""
    if not examples:
        return
    mark = f"between {OPEN} and {CLOSE} is learnt"
    if all(example.label is not None for example in examples):
        mark = "no text is learnt, but the label"
    print_lines(console, f"Training examples as the model will see them; {mark}:")
    for example in examples:
        print_lines(console, "", example.heading)
        text = Text()
        for piece in example.pieces:
            shown = terminal(piece.text, keep="\n\t")
            marked = f"{OPEN}{shown}{CLOSE}" if piece.learnt else shown
            text.append(marked, style=f"bold {GREEN}" if piece.learnt else None)
        console.print(text, highlight=False, soft_wrap=True)
    print_lines(console, "")


def _time(value: float | None) -> str:
    return "unknown" if value is None else seconds(value)


def _summary(planned: DryRun) -> list[str]:
    left = planned.expected - planned.complete
    lowest, highest = planned.ranks[0].rank, planned.ranks[-1].rank
    further = " The last, with twice the steps, is for --diagnose." if planned.further else ""
    lines = [
        f"Trials: about {planned.expected}, of which {planned.complete} are complete. Later ranks "
        f"and learning rates depend on the results of the first.{further}",
    ]
    if planned.seconds is not None:
        lines.append(
            f"Time: about {seconds(planned.seconds)} for the remaining {left}, one after another "
            f"on this machine. Estimated from {planned.timed_steps} timed steps each at ranks "
            f"{lowest} and {highest}. The table's times are per trial."
        )
    if planned.tokens_per_second is not None and planned.tflops is not None:
        plan = f"rankwise plan --engine fused --tflops {planned.tflops:.3g}"
        others = f"; {plan} plans other sweeps on this device" if planned.is_fused else ""
        lines.append(
            f"Speed: {planned.tokens_per_second:,.0f} tokens per second at rank {highest}, "
            f"{planned.tflops:.3g} TFLOP/s of useful work{others}."
        )
    if planned.room_bytes is not None:
        examples, tokens = planned.batch
        room = plain_bytes(planned.room_bytes)
        batches = f"batches of {examples} x {tokens} tokens"
        lines.append(f"Memory: for {batches}; {room} may be used.")
    return lines if planned.commands else [*lines, _in_force(planned)]


def _in_force(planned: DryRun) -> str:
    """Say how trials train, so that nobody must look up what auto chose."""
    tokens = planned.micro_batch_tokens
    passes = "whole batches" if tokens is None else f"micro-batches of at most {tokens} tokens"
    checkpointing = "on" if planned.gradient_checkpointing else "off"
    trials = "one trial" if planned.at_once == 1 else f"up to {planned.at_once} trials"
    return (
        f"Training: on {planned.device} in {planned.precision}, {passes}, gradient checkpointing "
        f"{checkpointing}, {trials} at once."
    )
