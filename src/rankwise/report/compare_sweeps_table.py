"""Sweeps side by side: a table, and quality and learning rate against rank with a line for each."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from rankwise.decide import Interval
from rankwise.formatting import figure, limits
from rankwise.report.compare_sweeps import Line
from rankwise.report.figure_files import write_figure
from rankwise.report.figures import error_bars, rate_ticks

HEIGHT = 760
COLOURS = ("#2563eb", "#d97706", "#15803d", "#7c3aed", "#dc2626", "#0891b2", "#6b7280", "#be185d")
# Lines that lie on one another are told apart by these.
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square-open", "diamond-open", "x-thin-open")


def print_side_by_side(lines: Sequence[Line], console: Console | None = None) -> None:
    """Print a row for each rank, a column for each sweep, and how much of rank's effect is that of the rate."""
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        console = Console(file=console.file, width=140)
    table = Table(
        title=f"Held-out loss, {lines[0].unit}, at each rank's own learning rate (95% interval)",
        title_justify="left",
    )
    table.add_column("rank", justify="right")
    for line in lines:
        table.add_column(line.label, justify="right", overflow="fold")
    within = _within(lines)
    for rank in _ranks(lines):
        table.add_row(str(rank), *(_cell(line, rank, within) for line in lines))
    table.add_section()
    table.add_row(
        "chosen", *("undetermined" if line.rank is None else str(line.rank) for line in lines)
    )
    spreads = ["" if line.spread is None else f"{line.spread:.4f}" for line in lines]
    table.add_row("ranks apart, own rates", *spreads)
    for rate in sorted({rate for line in lines for rate in line.spread_at}):
        apart = [f"{line.spread_at[rate]:.4f}" if rate in line.spread_at else "" for line in lines]
        table.add_row(f"ranks apart, all at {rate:g}", *apart)
    console.print(table)
    console.print(
        "Ranks apart: the largest difference of held-out loss between two ranks, first seed. What it is more at one "
        "rate than at the ranks' own is the learning rate's effect, not the rank's.",
        highlight=False,
    )


def write_side_by_side_plot(lines: Sequence[Line], path: Path) -> None:
    """Draw quality and learning rate against rank, a line for each sweep, to .html or .png.

    One stands above the other, so that a narrow window has room for both.
    """
    titles = (f"Held-out loss, {lines[0].unit}", "Learning rate it was reached at")
    drawn = make_subplots(2, 1, subplot_titles=titles, vertical_spacing=0.16)
    within = _within(lines)
    for index, line in enumerate(lines):
        rows = [row for row in line.table if row["loss_mean"] is not None]
        ranks, colour = [row["rank"] for row in rows], COLOURS[index % len(COLOURS)]
        means = [row["loss_mean"] for row in rows]
        bars = {**error_bars(means, [row["loss_ci"] for row in rows], within), "thickness": 1}
        common = {
            "x": ranks,
            "mode": "lines+markers",
            "name": line.label,
            "legendgroup": line.label,
        }
        look = {
            "line": {"color": colour, "dash": DASHES[index % len(DASHES)]},
            "marker": {
                "size": 9 + 2 * (index % len(SYMBOLS)),
                "symbol": SYMBOLS[index % len(SYMBOLS)],
            },
        }
        drawn.add_trace(go.Scatter(**common, **look, y=means, error_y=bars), 1, 1)
        rates = [row["learning_rate"] for row in rows]
        drawn.add_trace(go.Scatter(**common, **look, y=rates, showlegend=False), 2, 1)
    ranks = _ranks(lines)
    drawn.update_xaxes(
        title="rank", type="log", tickvals=ranks, ticktext=[str(rank) for rank in ranks]
    )
    tried = [
        row["learning_rate"]
        for line in lines
        for row in line.table
        if row["learning_rate"] is not None
    ]
    drawn.update_yaxes(type="log", row=2, **(rate_ticks(tried, most=8) if tried else {}))
    drawn.update_layout(
        template="plotly_white",
        height=HEIGHT,
        margin={"l": 70, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "y": -0.1},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    drawn.update_annotations(font_size=14)
    write_figure(drawn, path, height=HEIGHT)


def _ranks(lines: Sequence[Line]) -> list[int]:
    return sorted({row["rank"] for line in lines for row in line.table})


def _within(lines: Sequence[Line]) -> Interval:
    return limits("loss", [row["loss_mean"] for line in lines for row in line.table])


def _cell(line: Line, rank: int, within: Interval) -> str:
    rows = [row for row in line.table if row["rank"] == rank]
    if not rows:
        return ""
    row = rows[0]
    if row["loss_mean"] is None:
        return "diverged"
    at = "" if row["learning_rate"] is None else f" at {row['learning_rate']:g}"
    return f"{figure(row['loss_mean'], row['loss_ci'], within=within)}{at}"
