"""Plots of the report, and files of single figures."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rankwise.decide.decision import Interval
from rankwise.decide.metrics import is_share, value_range
from rankwise.decide.wording import Wording
from rankwise.errors import RankwiseError, RequestError
from rankwise.formatting import UNLIMITED, clip, plain_bytes, seconds, sure
from rankwise.report.style import BLUE, FONT, GREEN, GREY, ORANGE

Row = dict[str, Any]
"""A row of the decision's table, as in ``decision.json``."""

SHADES = (
    "#93c5fd", "#60a5fa", "#3b82f6", "#1d4ed8", "#1e3a8a", "#172554", "#7c3aed", "#4c1d95",
)  # fmt: skip
PLOT_HEIGHT = 340
CONFIG = {"displayModeBar": False, "responsive": True}
# The text of the page refers to these two plots by their titles.
COMPARED_TITLE = "Held-out loss minus that of the best other rank"
RATES_TITLE = "Held-out loss by learning rate"


def report_plots(
    decision: dict[str, Any], evidence: pd.DataFrame, unit: str, score: str
) -> dict[str, str]:
    """Return the HTML of each plot by its name; no plots if every rank diverged.

    The plot "sure" is left out where nothing shows how sure a rank is.

    Args:
        decision: content of ``decision.json``.
        evidence: one row per trial and example, see `rankwise.store.records.read_evidence`.
        unit: unit of the loss.
        score: name of the task score.
    """
    rows = [row for row in decision["table"] if row["loss_mean"] is not None]
    if not rows:
        return {}
    memory, unit_bytes = "MiB", 2**20
    if any((row["peak_memory_bytes"] or 0) >= 10 * 2**30 for row in rows):
        memory, unit_bytes = "GiB", 2**30
    figures: dict[str, go.Figure | None] = {
        "sure": sure_figure(decision, unit),
        "compared": compared_figure(rows, decision),
        "loss": _mean_figure(rows, decision, "loss", "loss", f"Held-out loss, {unit}"),
        "score": _mean_figure(rows, decision, "score", score, f"Held-out {score}"),
        "gain": _gain_figure(rows, decision),
        "rates": _learning_rate_figure(evidence, unit),
        "seconds": _cost_figure(
            rows, "train_seconds", "Training time per trial, seconds", 1, seconds
        ),
        "memory": _cost_figure(
            rows, "peak_memory_bytes", f"Peak training memory, {memory}", unit_bytes, plain_bytes
        ),
        "params": _cost_figure(
            rows, "trainable_params", "Trainable parameters, thousands", 1000, "{:,}".format
        ),
    }
    pages = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        figure.update_xaxes(title_font_size=FONT["size"])
        pages[name] = figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", config=CONFIG
        )
    return pages


def sure_figure(decision: dict[str, Any], unit: str) -> go.Figure | None:
    """Plot how sure each rank is within the margin, with the confidence asked for as a line.

    The recommended rank is green, and hatched where it is provisional. None if no rank has a
    confidence.

    Args:
        decision: content of ``decision.json``.
        unit: unit of the margin.
    """
    rows, asked = decision["table"], decision["confidence"]
    known = [row["confidence_within_margin"] for row in rows]
    if not any(known):
        return None
    is_provisional = decision["rank"] is None
    texts = ["diverged" if one is None else sure(one, asked) for one in known]
    colours, patterns = [], []
    for place, row in enumerate(rows):
        colour, pattern = BLUE if row["non_inferior"] else GREY, ""
        if row["rank"] == decision["recommended"]:
            colour, pattern = GREEN, "/" if is_provisional else ""
            texts[place] = f"<b>{texts[place]}, {'for now' if is_provisional else 'use this'}</b>"
        colours.append(colour)
        patterns.append(pattern)
    places = list(range(len(rows)))
    margin = f"{decision['margin']:.3g} {Wording(unit).unit}"
    figure = new_figure(f"How sure that a rank is within {margin} of the best")
    figure.add_bar(
        x=[100 * (one or 0.0) for one in known],
        y=places,
        orientation="h",
        width=0.6,
        marker={
            "color": colours,
            "line": {"color": colours, "width": 1.5},
            "pattern": {"shape": patterns, "fillmode": "replace", "size": 7},
        },
        customdata=[f"rank {row['rank']}: {text}" for row, text in zip(rows, texts, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
    )
    for place, text in enumerate(texts):
        font = {"color": GREEN} if rows[place]["rank"] == decision["recommended"] else {}
        at = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 8, "y": place}
        figure.add_annotation(text=text, showarrow=False, font=font, **at)
    label = {"text": f"{100 * asked:.4g} % asked", "yshift": 2}
    line = {"dash": "dot", "color": ORANGE, "width": 2}
    figure.add_vline(x=100 * asked, line=line, annotation=label, annotation_position="top")
    figure.update_layout(height=120 + 32 * len(rows), margin={"l": 60, "r": 140, "t": 68, "b": 30})
    shares = [0, 25, 50, 75, 100]
    figure.update_xaxes(range=[0, 100.5], tickvals=shares, ticktext=[f"{one} %" for one in shares])
    ticks = {"tickvals": places, "ticktext": [f"{row['rank']} " for row in rows]}
    return figure.update_yaxes(title="rank", range=[len(rows) - 0.4, -0.6], showgrid=False, **ticks)


def compared_figure(rows: list[Row], decision: dict[str, Any]) -> go.Figure:
    """Plot how much worse each rank is than the best other rank: the difference and its bound.

    A rank is within the margin if its upper bound lies below the margin's line.
    """
    figure = new_figure(COMPARED_TITLE)
    for row in rows:
        others = [other["loss_mean"] for other in rows if other is not row]
        bound = row["worst_difference"]
        if not others or bound is None:
            continue
        difference = row["loss_mean"] - min(others)
        colour = BLUE if row["non_inferior"] else GREY
        if row["rank"] == decision["recommended"]:
            colour = GREEN
        line = {"color": colour, "width": 2}
        symbols = [_symbol(row["rank"], decision), "line-ew"]
        figure.add_scatter(
            x=[row["rank"]] * 2,
            y=[difference, bound],
            mode="lines+markers",
            line=line,
            marker={"size": [11, 16], "symbol": symbols, "line": line, "opacity": 1},
            name=f"rank {row['rank']}",
            text=["difference", "upper bound"],
            hovertemplate="%{text}: %{y:+.4f}",
        )
    _add_margin_line(figure, decision)
    return figure.update_xaxes(**rank_axis([row["rank"] for row in rows]))


def error_bars(
    means: Sequence[float], intervals: Sequence[Interval | None], possible: Interval
) -> dict[str, Any]:
    """Return plotly's error bars: the possible part of each interval, no bar without one."""
    bounds = [interval and clip(interval, possible) for interval in intervals]
    return {
        "type": "data",
        "array": [each and each[1] - mean for mean, each in zip(means, bounds, strict=True)],
        "arrayminus": [each and mean - each[0] for mean, each in zip(means, bounds, strict=True)],
    }


def log_ticks(values: Iterable[float], most: int = 5) -> dict[str, Any]:
    """Return ticks of a logarithmic axis at those values whose labels do not overlap.

    Args:
        values: ranks or learning rates.
        most: number of labels that fit on the axis.
    """
    distinct = sorted({float(value) for value in values})
    least_distance = 0.999 * math.log(distinct[-1] / distinct[0]) / most
    ticks = distinct[:1]
    for value in distinct[1:]:
        if math.log(value / ticks[-1]) >= least_distance:
            ticks.append(value)
    labels = [f"{value:.3g}" if value < 1 else f"{value:g}" for value in ticks]
    return {"tickvals": ticks, "ticktext": labels, "tickangle": 0}


def rank_axis(ranks: Sequence[int]) -> dict[str, Any]:
    """Return the settings of a logarithmic axis with ticks at the ranks."""
    return {"title": "rank", "type": "log", "tickfont": {"size": 11}, **log_ticks(ranks, most=8)}


def first_seed_means(evidence: pd.DataFrame) -> pd.Series:
    """Return the mean loss of the first seed trained at each rank and learning rate.

    Diverged trials are left out. As a rule the first seed is the same everywhere, but `once` tries
    its learning rates with two seeds in turn.
    """
    keys = ["rank", "learning_rate"]
    first_seed = evidence["seed"] == evidence.groupby(keys)["seed"].transform("min")
    finite = evidence[first_seed & ~evidence["diverged"].astype(bool)]
    return finite.groupby(keys)["loss"].mean()


def check_plot_path(path: Path) -> None:
    """Refuse a path that no figure can be written to, before any work is done.

    Raises:
        RequestError: the name ends in neither .html nor .png, or the directory does not exist.
    """
    if path.suffix.lower() not in (".html", ".png"):
        raise RequestError(f"plot {str(path)!r}: allowed is a name that ends in .html or .png")
    if not path.parent.is_dir():
        raise RequestError(f"plot {str(path)!r}: there is no directory {str(path.parent)!r}")


def write_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure as a self-contained page (.html) or as a picture of 2000 pixels' width (.png).

    Raises:
        RankwiseError: the file cannot be written, or for .png, kaleido or its browser is missing.
    """
    try:
        if path.suffix.lower() == ".html":
            figure.write_html(path, include_plotlyjs=True, config=CONFIG)
        else:
            figure.write_image(path, width=1000, height=figure.layout.height, scale=2)
    except OSError as error:
        raise RankwiseError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RankwiseError(
            f"cannot draw {str(path)!r}: .png needs the package kaleido and a Chrome or Chromium "
            f"({reason}); .html needs neither"
        ) from None


def _mean_figure(
    rows: list[Row], decision: dict[str, Any], key: str, metric: str, title: str
) -> go.Figure:
    """Plot the means of a metric against rank with intervals; the recommended rank is green."""
    ranks = [row["rank"] for row in rows]
    means = [row[f"{key}_mean"] for row in rows]
    intervals = [row[f"{key}_ci"] for row in rows]
    possible = value_range(metric, means)
    shown = ".1%" if is_share(metric) else ".4f"
    colours = [GREEN if rank == decision["recommended"] else BLUE for rank in ranks]
    symbols = [_symbol(rank, decision) for rank in ranks]
    points = go.Scatter(
        x=ranks,
        y=means,
        error_y={**error_bars(means, intervals, possible), "color": GREY},
        mode="lines+markers",
        line={"color": GREY, "width": 1},
        marker={"size": 11, "color": colours, "symbol": symbols, "line": {"width": 2}},
        hovertemplate=f"rank %{{x}}: held-out {metric} %{{y:{shown}}}<extra></extra>",
    )
    figure = new_figure(title, points).update_xaxes(**rank_axis(ranks))
    if is_share(metric):  # plotly's default range would have ticks beyond 100 %
        ends = [end for interval in intervals if interval for end in clip(interval, possible)]
        figure.update_yaxes(range=_share_axis_range([*means, *ends]), tickformat=shown)
    return figure


def _symbol(rank: int, decision: dict[str, Any]) -> str:
    """Return a rank's marker: hollow if it is recommended provisionally."""
    is_provisional = decision["rank"] is None and rank == decision["recommended"]
    return "circle-open" if is_provisional else "circle"


def _share_axis_range(values: Sequence[float]) -> list[float]:
    """Return an axis range that leaves room for a marker beyond 0 and 1, but not for a tick."""
    span = max(max(values) - min(values), 0.02)
    low = max(0.0, min(min(values), max(values) - span))
    high = max(max(values), low + span)
    return [low - 0.06 * span, high + 0.06 * span]


def _gain_figure(rows: list[Row], decision: dict[str, Any]) -> go.Figure:
    """Plot how much the held-out loss falls with each step up in rank, per doubling."""
    steps = [(row["rank"], row["gain_over_previous"]) for row in rows if row["gain_over_previous"]]
    gains = [gain["per_doubling"] for _, gain in steps]
    intervals = [gain["per_doubling_ci"] for _, gain in steps]
    bars = go.Bar(
        x=[f"{gain['rank']} to {rank}" for rank, gain in steps],
        y=gains,
        error_y={**error_bars(gains, intervals, UNLIMITED), "color": GREY},
        marker={"color": BLUE},
        width=0.5,
        hovertemplate="rank %{x}: %{y:+.4f} per doubling<extra></extra>",
    )
    figure = new_figure("Fall in held-out loss per doubling of the rank", bars)
    _add_margin_line(figure, decision)
    return figure.update_xaxes(title="step from rank to rank", type="category")


def _learning_rate_figure(evidence: pd.DataFrame, unit: str) -> go.Figure:
    """Plot loss against learning rate, a line per rank."""
    means = first_seed_means(evidence).reset_index()
    figure = new_figure(f"{RATES_TITLE}, {unit}")
    for index, (rank, line) in enumerate(means.groupby("rank")):
        figure.add_scatter(
            x=line["learning_rate"].tolist(),
            y=line["loss"].tolist(),
            mode="lines+markers",
            name=f"rank {rank}",
            line={"color": SHADES[index % len(SHADES)]},
            marker={"size": 9},
            hovertemplate="learning rate %{x:.3g}: held-out loss %{y:.4f}",
        )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25, "yanchor": "top"})
    ticks = log_ticks(means["learning_rate"], most=4)
    return figure.update_xaxes(title="learning rate", type="log", **ticks)


def _cost_figure(
    rows: list[Row], key: str, title: str, unit: int, text: Callable[[float], str]
) -> go.Figure:
    """Plot a measured cost against rank; ranks at which it was not measured have no bar."""
    costs = [row[key] for row in rows]
    bars = go.Bar(
        x=[str(row["rank"]) for row in rows],
        y=[None if cost is None else cost / unit for cost in costs],
        customdata=["" if cost is None else text(cost) for cost in costs],
        marker={"color": BLUE},
        width=0.5,
        hovertemplate="rank %{x}: %{customdata}<extra></extra>",
    )
    return new_figure(title, bars).update_xaxes(title="rank", type="category")


def _add_margin_line(figure: go.Figure, decision: dict[str, Any]) -> None:
    figure.add_hline(
        y=decision["margin"],
        line={"dash": "dot", "color": ORANGE},
        annotation={"text": "margin"},
        annotation_position="right",
    )
    figure.update_layout(margin_r=65)


def new_figure(title: str, *traces: Any) -> go.Figure:
    """Return a figure of traces with the common look.

    To set the look afterwards would take twice as long: a figure begins with another template.
    """
    layout = {
        "title": {"text": title, "font": {"size": 14}, "x": 0.01, "y": 0.97},
        "template": "plotly_white",
        "height": PLOT_HEIGHT,
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "font": FONT,
        "showlegend": False,
    }
    return go.Figure(list(traces), layout)
