"""The decision in the terminal: the answer, the table of ranks, and what to keep in mind."""

from rich.console import Console
from rich.table import Table

from rankwise.decide.decision import Decision
from rankwise.decide.summary import decision_sentences, rank_cells
from rankwise.report.style import new_table, print_lines, wide_console


def print_decision(
    decision: Decision, console: Console | None = None, *, score: str = "accuracy"
) -> None:
    """Print the answer, its evidence, the table of ranks and the caveats.

    Args:
        decision: decision of a sweep, or on results of others.
        console: console to print to; stdout if None.
        score: name of the task score.
    """
    console = wide_console(console)
    answer, *lines = decision_sentences(decision, score)
    print_lines(console, answer, wrap=True, style="bold")
    if decision.evidence:
        print_lines(console, lines.pop(0), wrap=True)
    console.print(_rank_table(decision, score))
    print_lines(console, *lines, wrap=True)


def _rank_table(decision: Decision, score: str) -> Table:
    title = "Which rank to train at"
    if decision.question == "keep":
        title = f"Which rank to keep of adapters trained at rank {decision.trained_at}"
    table = new_table(f"{title} ({decision.confidence:.0%} intervals)")
    cells = rank_cells(decision, score)
    # Results of others are often a single number for each rank, so empty columns are left out.
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    for name in names:
        table.add_column(name.replace(" ", "\n", 1), justify="right", overflow="fold")
    for row, texts in zip(decision.table, cells, strict=True):
        # An interval in brackets goes below its figure, lest the column break it anywhere.
        lines = [texts[name].replace(" [", "\n[") for name in names]
        table.add_row(*lines, style="bold green" if row.rank == decision.rank else None)
    return table
