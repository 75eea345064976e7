"""The report's plots, as HTML fragments that share one copy of plotly.js."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rankwise.formatting import clip, is_share, limits

if TYPE_CHECKING:
    from rankwise.decide import Interval

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#d97706", "#6b7280", "#15803d"
HEIGHT = 340
# Titles by which the page speaks of a plot: where it stands depends on the page's width.
PAIRED = "Loss above the best other rank's, paired"
AT_RATES = "Held-out loss against learning rate"


def library() -> str:
    """Return plotly.js, to be put into the page once."""
    return get_plotlyjs()


def draw(decision: dict[str, Any], evidence: pd.DataFrame, loss: str, score: str) -> dict[str, str]:
    """Return each plot's HTML by its name; none where every rank diverged.

    Args:
        decision: as in ``decision.json``.
        evidence: a row per trial and example, see `rankwise.store.directory.read_evidence`.
        loss: what the loss is measured in.
        score: what the task score is called.
    """
    rows = [row for row in decision["table"] if row["loss_mean"] is not None]
    if not rows:
        return {}
    figures = {
        "compared": compared(rows, decision),
        "loss": _quality(rows, decision, "loss", "loss", f"Held-out loss, {loss}"),
        "score": _quality(rows, decision, "score", score, f"Held-out {score}", is_share(score)),
        "gain": _gain(rows, decision),
        "seconds": _cost(rows, "train_seconds", 1.0, "Training time of one trial, s"),
        "memory": _cost(rows, "peak_memory_bytes", 2.0**20, "Peak memory of a training step, MiB"),
        "params": _cost(rows, "trainable_params", 1e3, "Trainable parameters, thousands"),
        "rates": _rates(evidence, loss),
    }
    return {
        name: figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"plot-{name}",
            config={"displayModeBar": False, "responsive": True},
        )
        for name, figure in figures.items()
    }


def _quality(
    rows: list[dict[str, Any]],
    decision: dict[str, Any],
    what: str,
    name: str,
    title: str,
    percent: bool = False,
) -> go.Figure:
    """Mean against rank, with what is possible of its interval; the chosen rank stands out."""
    means = [row[f"{what}_mean"] for row in rows]
    within = limits(name, means)
    intervals = [row[f"{what}_ci"] for row in rows]
    colours = [GREEN if row["rank"] == decision["rank"] else BLUE for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=[row["rank"] for row in rows],
            y=means,
            error_y={**error_bars(means, intervals, within), "color": GREY},
            mode="lines+markers",
            line={"color": GREY, "width": 1},
            marker={"size": 11, "color": colours},
        )
    )
    if percent:  # plotly's own range would have ticks beyond 100 %
        ends = [end for ci in intervals if ci for end in clip(ci, within)]
        figure.update_yaxes(range=_share_range([*means, *ends]))
    return _styled(figure, rows, title, percent)


def error_bars(
    means: Sequence[float], intervals: Sequence["Interval | None"], within: "Interval"
) -> dict[str, Any]:
    """Return plotly's error bars, of what of intervals is possible; none where nothing says how far a mean may vary."""
    bounds = [ci and clip(ci, within) for ci in intervals]
    return {
        "type": "data",
        "array": [ci and ci[1] - mean for mean, ci in zip(means, bounds, strict=True)],
        "arrayminus": [ci and mean - ci[0] for mean, ci in zip(means, bounds, strict=True)],
    }


def _share_range(values: Sequence[float]) -> list[float]:
    """Return an axis' range for shares: room for a marker beyond 0 and 1, but for no tick."""
    low, high = min(values), max(values)
    span = max(high - low, 0.02)
    low = max(0.0, min(low, high - span))
    high = max(high, low + span)
    return [low - 0.06 * span, high + 0.06 * span]


def compared(rows: list[dict[str, Any]], decision: dict[str, Any]) -> go.Figure:
    """Each rank's loss above the best other rank's, up to its bound: a rank fits if the bound is below the margin."""
    figure = go.Figure()
    for row in rows:
        others = [other["loss_mean"] for other in rows if other is not row]
        if not others or row["worst_difference"] is None:
            continue
        seen, bound = row["loss_mean"] - min(others), row["worst_difference"]
        colour = GREEN if row["rank"] == decision["rank"] else BLUE if row["non_inferior"] else GREY
        figure.add_trace(
            go.Scatter(
                x=[row["rank"], row["rank"]],
                y=[seen, bound],
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={
                    "size": [11, 16],
                    "symbol": ["circle", "line-ew"],
                    "line": {"width": 2, "color": colour},
                    "opacity": 1,
                },
                name=f"rank {row['rank']}",
            )
        )
    _margin_line(figure, decision)
    return _styled(figure, rows, PAIRED)


def _margin_line(figure: go.Figure, decision: dict[str, Any]) -> None:
    figure.add_hline(
        y=decision["margin"],
        line_dash="dot",
        line_color=ORANGE,
        annotation_text="margin",
        annotation_position="top right",
    )


def _gain(rows: list[dict[str, Any]], decision: dict[str, Any]) -> go.Figure:
    """How much loss falls with each step up in rank, per doubling."""
    steps = [row for row in rows if row["gain_over_previous"]]
    names = [f"{row['gain_over_previous']['rank']} to {row['rank']}" for row in steps]
    gains = [row["gain_over_previous"]["per_doubling"] for row in steps]
    bounds = [row["gain_over_previous"]["per_doubling_ci"] for row in steps]
    plus = [high - gain for gain, (_, high) in zip(gains, bounds, strict=True)]
    minus = [gain - low for gain, (low, _) in zip(gains, bounds, strict=True)]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=gains,
            error_y={"type": "data", "array": plus, "arrayminus": minus, "color": GREY},
            marker={"color": BLUE},
            width=0.5,
        )
    )
    _margin_line(figure, decision)
    _styled(figure, [], "Fall of held-out loss per doubling of rank")
    return figure.update_xaxes(title="from rank to rank", type="category")


def _cost(rows: list[dict[str, Any]], what: str, unit: float, title: str) -> go.Figure:
    figure = go.Figure(
        go.Bar(
            x=[str(row["rank"]) for row in rows],
            y=[row[what] / unit if row[what] is not None else None for row in rows],
            marker={"color": [BLUE] * len(rows)},
            width=0.5,
        )
    )
    _styled(figure, [], title)
    return figure.update_xaxes(title="rank", type="category")


def _rates(evidence: pd.DataFrame, loss: str) -> go.Figure:
    """Loss against learning rate, a line per rank, on the seed that has tried them all."""
    usable = evidence[
        ~evidence["diverged"].astype(bool) & (evidence["seed"] == evidence["seed"].min())
    ]
    means = usable.groupby(["rank", "learning_rate"])["loss"].mean().reset_index()
    figure = go.Figure()
    shades = [
        "#93c5fd",
        "#60a5fa",
        "#3b82f6",
        "#1d4ed8",
        "#1e3a8a",
        "#172554",
        "#7c3aed",
        "#4c1d95",
    ]
    for index, (rank, part) in enumerate(means.groupby("rank")):
        figure.add_trace(
            go.Scatter(
                x=part["learning_rate"].tolist(),
                y=part["loss"].tolist(),
                mode="lines+markers",
                name=f"rank {rank}",
                line={"color": shades[index % len(shades)]},
                marker={"size": 9},
            )
        )
    _styled(figure, [], f"{AT_RATES}, {loss}")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.1})
    return figure.update_xaxes(
        title="learning rate", type="log", **rate_ticks(means["learning_rate"])
    )


def rate_ticks(rates: Iterable[float], most: int = 5) -> dict[str, Any]:
    """Return ticks at the rates tried, ascending on a log axis, without those whose labels would meet."""
    tried = sorted({float(rate) for rate in rates})
    apart = math.log(tried[-1] / tried[0]) / most
    ticks = tried[:1]
    for rate in tried[1:]:
        if math.log(rate / ticks[-1]) >= apart:
            ticks.append(rate)
    return {"tickvals": ticks, "ticktext": [f"{rate:.3g}" for rate in ticks]}


def _styled(
    figure: go.Figure, rows: list[dict[str, Any]], title: str, percent: bool = False
) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01, "y": 0.97},
        template="plotly_white",
        height=HEIGHT,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        showlegend=False,
    )
    figure.update_yaxes(tickformat=".1%" if percent else None)
    if rows:
        ranks = [row["rank"] for row in rows]
        figure.update_xaxes(
            title="rank", type="log", tickvals=ranks, ticktext=[str(rank) for rank in ranks]
        )
    return figure
