"""Compare several finished sweeps of one task, for example one sweep for each alpha policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console

from rankwise.decide.decision import Interval
from rankwise.decide.metrics import value_range
from rankwise.errors import RequestError, reading
from rankwise.escaping import page
from rankwise.formatting import figure, how_sure
from rankwise.report import figures
from rankwise.report.style import FONT, new_table, print_lines, wide_console
from rankwise.store.records import SweepRecord, read_evidence, read_finished_sweep

COLOURS = ("#2563eb", "#d97706", "#15803d", "#7c3aed", "#dc2626", "#0891b2", "#6b7280", "#be185d")
# Dashes and symbols keep curves apart that lie on top of each other.
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square-open", "diamond-open", "x-thin-open")


@dataclass(frozen=True)
class ComparedSweep:
    """One sweep in a comparison of several.

    Attributes:
        label: the settings that distinguish it from the other sweeps.
        unit: unit of its losses.
        rank: selected rank; None if undetermined.
        recommended: the rank to use: ``rank``, or the one to use for now; None if there is none.
        sure: how sure the recommended rank is, as text.
        table: rows of the decision's table, as in ``decision.json``.
        spread: largest difference in held-out loss between two ranks, each at its own learning
            rate, with the first seed trained at it; None where a rank diverged.
        spread_at: the same with all ranks at one learning rate, for each rate they all tried.
    """

    label: str
    unit: str
    directory: Path
    rank: int | None
    table: tuple[dict[str, Any], ...]
    spread: float | None
    spread_at: dict[float, float]
    recommended: int | None = None
    sure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values."""
        spreads = [{"learning_rate": rate, "spread": each} for rate, each in self.spread_at.items()]
        values = {"directory": str(self.directory), "table": list(self.table), "spread_at": spreads}
        return {**vars(self), **values}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ComparedSweep":
        """Return the sweep that `as_dict` described."""
        spread_at = {each["learning_rate"]: each["spread"] for each in content["spread_at"]}
        label, unit, directory, rank, table, spread = (
            content[name] for name in ("label", "unit", "directory", "rank", "table", "spread")
        )
        # Recorded comparisons of earlier versions recommend what they select.
        recommended, sure = content.get("recommended", rank), content.get("sure", "")
        return cls(
            label, unit, Path(directory), rank, tuple(table), spread, spread_at, recommended, sure
        )


def read_compared_sweeps(directories: Sequence[Path]) -> list[ComparedSweep]:
    """Read finished sweeps of one task.

    Raises:
        RequestError: a directory holds no finished sweep, or the sweeps differ in data or loss.
    """
    finished = [read_finished_sweep(directory) for directory in directories]
    first = _comparability(finished[0][0])
    for directory, (request, _) in zip(directories, finished, strict=True):
        for name, value in _comparability(request).items():
            if value != first[name]:
                raise RequestError(
                    f"{str(directory)!r} and {str(directories[0])!r} differ in {name}: "
                    "their losses cannot be compared"
                )
    labels = _labels(directories, [request for request, _ in finished])
    sweeps = []
    for directory, label, (request, decision) in zip(directories, labels, finished, strict=True):
        with reading(f"sweep {str(directory)!r} cannot be compared"):
            table = tuple(decision["table"])
            spread, spread_at = _spreads(read_evidence(directory), table)
            sweeps.append(
                ComparedSweep(
                    label=label,
                    unit=request.task.loss,
                    directory=directory,
                    rank=decision["rank"],
                    table=table,
                    spread=spread,
                    spread_at=spread_at,
                    recommended=decision["recommended"],
                    sure=how_sure(decision["confidence_reached"], decision["confidence"]),
                )
            )
    return sweeps


def print_sweep_comparison(sweeps: Sequence[ComparedSweep], console: Console | None = None) -> None:
    """Print a table with a row for each rank and a column for each sweep.

    The last rows show how much of rank's apparent effect the learning rate explains.
    """
    console = wide_console(console, 140)
    unit = sweeps[0].unit
    title = f"Held-out loss in {unit}, each rank at its own learning rate (95% intervals)"
    table = new_table(title)
    table.add_column("rank", justify="right")
    for sweep in sweeps:
        table.add_column(sweep.label, justify="right", overflow="fold")
    possible = _possible_losses(sweeps)
    for rank in _ranks(sweeps):
        table.add_row(str(rank), *(_cell(sweep, rank, possible) for sweep in sweeps))
    table.add_section()
    table.add_row("recommended rank", *map(_recommendation, sweeps))
    table.add_row("spread, own rates", *(_spread_text(sweep.spread) for sweep in sweeps))
    for rate in sorted({rate for sweep in sweeps for rate in sweep.spread_at}):
        spreads = [_spread_text(sweep.spread_at.get(rate)) for sweep in sweeps]
        table.add_row(f"spread, all at {rate:g}", *spreads)
    console.print(table)
    print_lines(
        console,
        "Spread: the largest difference in held-out loss between two ranks, each with the first "
        "seed trained at the rate. The excess of 'all at one rate' over 'own rates' is due to the "
        "learning rate, not to the rank.",
        wrap=True,
    )


def write_sweep_comparison_plot(sweeps: Sequence[ComparedSweep], path: Path) -> None:
    """Draw held-out loss and learning rate against rank, a curve for each sweep.

    The two plots stand one above the other, so that they fit a narrow window.
    """
    titles = (f"Held-out loss, {sweeps[0].unit}", "Best learning rate of each rank")
    plot = make_subplots(2, 1, subplot_titles=titles, vertical_spacing=0.16)
    possible = _possible_losses(sweeps)
    for index, sweep in enumerate(sweeps):
        rows = [row for row in sweep.table if row["loss_mean"] is not None]
        means = [row["loss_mean"] for row in rows]
        bars = {
            **figures.error_bars(means, [row["loss_ci"] for row in rows], possible),
            "thickness": 1,
        }
        symbol = {"size": 9 + 2 * (index % len(SYMBOLS)), "symbol": SYMBOLS[index % len(SYMBOLS)]}
        style = {
            "x": [row["rank"] for row in rows],
            "mode": "lines+markers",
            "name": page(sweep.label),
            "legendgroup": page(sweep.label),
            "line": {"color": COLOURS[index % len(COLOURS)], "dash": DASHES[index % len(DASHES)]},
            "marker": symbol,
        }
        loss_text = "rank %{x}: held-out loss %{y:.4f}<extra>%{fullData.name}</extra>"
        curve = go.Scatter(**style, y=means, error_y=bars, hovertemplate=loss_text)
        plot.add_trace(curve, 1, 1)
        rates = [row["learning_rate"] for row in rows]
        rate_text = "rank %{x}: learning rate %{y:.3g}<extra>%{fullData.name}</extra>"
        curve = go.Scatter(**style, y=rates, showlegend=False, hovertemplate=rate_text)
        plot.add_trace(curve, 2, 1)
    plot.update_xaxes(**figures.rank_axis(_ranks(sweeps)))
    rates = [row["learning_rate"] for sweep in sweeps for row in sweep.table]
    tried = [rate for rate in rates if rate is not None]
    ticks = figures.log_ticks(tried, most=8) if tried else {}
    plot.update_yaxes(type="log", row=2, **ticks)
    plot.update_layout(
        template="plotly_white",
        height=760,
        margin={"l": 70, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "y": -0.1},
        font=FONT,
    )
    plot.update_annotations(font_size=14)
    figures.write_figure(plot, path)


def _comparability(sweep: SweepRecord) -> dict[str, Any]:
    """Return what two sweeps must share for their losses to be comparable."""
    return {
        "data": sweep.fingerprints.data,
        "eval_data": sweep.fingerprints.eval_data,
        "train_examples": sweep.settings.get("train_examples"),
        "loss": sweep.task.loss,
    }


def _labels(directories: Sequence[Path], requests: Sequence[SweepRecord]) -> list[str]:
    """Name each sweep by the settings that differ, or by its directory if those are not unique."""
    settings = [{**request.settings, "model": request.paths.model} for request in requests]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    labels = []
    for each in settings:
        values = [(name, each.get(name)) for name in differing]
        texts = [f"{name.replace('_', ' ')} {_value_text(value)}" for name, value in values]
        labels.append(", ".join(texts))
    unique = len(set(labels)) == len(labels)
    return labels if unique else [directory.name for directory in directories]


def _value_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _spreads(
    evidence: pd.DataFrame, table: Sequence[dict[str, Any]]
) -> tuple[float | None, dict[float, float]]:
    """Return the spread of mean losses over ranks: at their own rates, and at each common rate."""
    means = figures.first_seed_means(evidence)
    losses = means.unstack("learning_rate")  # (ranks, rates)
    ranks = {row["rank"] for row in table}
    spread_at: dict[float, float] = {}
    if set(losses.index) == ranks:
        common = losses.dropna(axis="columns")
        spreads = common.max() - common.min()
        spread_at = dict(zip(spreads.index.tolist(), spreads.tolist(), strict=True))
    pairs = [(row["rank"], row["learning_rate"]) for row in table]
    own = [means[pair] for pair in pairs if pair in means.index]
    spread = float(max(own) - min(own)) if len(own) == len(ranks) else None
    return spread, spread_at


def _ranks(sweeps: Sequence[ComparedSweep]) -> list[int]:
    return sorted({row["rank"] for sweep in sweeps for row in sweep.table})


def _recommendation(sweep: ComparedSweep) -> str:
    """Return the recommended rank and how sure it is."""
    if sweep.recommended is None:
        return "none yet"
    how = ["provisional"] if sweep.rank is None else []
    how += [sweep.sure] if sweep.sure else []
    return f"{sweep.recommended} ({': '.join(how)})" if how else str(sweep.recommended)


def _possible_losses(sweeps: Sequence[ComparedSweep]) -> Interval:
    return value_range("loss", [row["loss_mean"] for sweep in sweeps for row in sweep.table])


def _spread_text(spread: float | None) -> str:
    return "" if spread is None else f"{spread:.4f}"


def _cell(sweep: ComparedSweep, rank: int, possible: Interval) -> str:
    row = next((row for row in sweep.table if row["rank"] == rank), None)
    if row is None:
        return ""
    if row["loss_mean"] is None:
        return "diverged"
    rate = row["learning_rate"]
    loss = figure(row["loss_mean"], row["loss_ci"], possible=possible)
    return loss if rate is None else f"{loss} at {rate:g}"
