"""The decision in the terminal: the answer, how sure each rank is, the table, the caveats."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankwise.decide.decision import Decision, RankRow
from rankwise.decide.summary import decision_sentences, rank_cells
from rankwise.formatting import how_sure, sure
from rankwise.report.style import new_table, print_lines, wide_console

BAR_WIDTH = 40  # characters for 100 %


def print_decision(
    decision: Decision, console: Console | None = None, *, score: str = "accuracy"
) -> None:
    """Print the answer, its evidence, how sure each rank is, the table of ranks and the caveats.

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
    for line in _sure_bars(decision, console):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_rank_table(decision, score))
    print_lines(console, *lines, wrap=True)


def recommendation(decision: Decision) -> str:
    """Return the recommended rank in a few words, with its doubt where it is provisional."""
    if decision.recommended is None:
        return "none yet"
    largest = f" of {decision.trained_at}" if decision.question == "keep" else ""
    if not decision.provisional:
        return f"{decision.recommended}{largest}"
    how = how_sure(decision.confidence_reached, decision.confidence)
    return f"{decision.recommended}{largest} (provisional: {how})"


def _sure_bars(decision: Decision, console: Console) -> Iterator[Text]:
    """Yield a bar for each rank; nothing where no confidence is known."""
    if not any(row.confidence_within_margin for row in decision.table):
        return
    asked = f"{100 * decision.confidence:.4g} %"
    fancy = console.is_terminal and console.color_system is not None and not console.no_color
    fancy = fancy and not console.options.ascii_only
    line = "│" if fancy else "|"
    yield Text(
        f"How sure that a rank is within {decision.margin:.3g} of the best ({line} {asked} asked)"
    )
    width = max(len(str(row.rank)) for row in decision.table)
    for row in decision.table:
        known = row.confidence_within_margin
        text = "diverged" if known is None else sure(known, decision.confidence)
        is_recommended = row.rank == decision.recommended
        if is_recommended:
            text += f"  <- {'use this rank for now' if decision.provisional else 'use this rank'}"
        style = _style(decision, row) if fancy else ""
        bar = _bar(decision, row, fancy)
        yield Text.assemble(
            (f"{row.rank:>{width}} ", "bold" if is_recommended else ""), (bar, style), f" {text}"
        )


def _bar(decision: Decision, row: RankRow, fancy: bool) -> str:
    """Return a bar with the confidence asked for as a line; a provisional rank's is hatched."""
    is_provisional = decision.provisional and row.rank == decision.recommended
    full, hatched, line, empty = "█▒│ " if fancy else "#=| "
    length = int((row.confidence_within_margin or 0.0) * BAR_WIDTH)
    bar = [hatched if is_provisional else full] * length + [empty] * (BAR_WIDTH - length)
    # The line stands right of the bars that do not reach it, and within those that do.
    bar.insert(int(decision.confidence * BAR_WIDTH), line)
    return "".join(bar)


def _style(decision: Decision, row: RankRow) -> str:
    """Return the colour of a rank, the same as in the report."""
    if row.rank == decision.recommended:
        return "yellow" if decision.provisional else "bold green"
    return "blue" if row.non_inferior else "bright_black"


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
    recommended = "bold yellow" if decision.provisional else "bold green"
    for row, texts in zip(decision.table, cells, strict=True):
        # An interval in brackets goes below its figure, lest the column break it anywhere.
        lines = [texts[name].replace(" [", "\n[") for name in names]
        table.add_row(*lines, style=recommended if row.rank == decision.recommended else None)
    return table
