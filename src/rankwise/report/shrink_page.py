"""The report of ``rankwise shrink``: one self-contained page."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rankwise import formatting
from rankwise.decide.metrics import is_share
from rankwise.report.figures import CONFIG, new_figure, rank_axis
from rankwise.report.shrink_table import OUTCOMES, is_chosen, rank_name, training_cost
from rankwise.report.style import BLUE, GREEN, GREY, ORANGE, page_template
from rankwise.store.durable import write_whole


def write_shrink_page(document: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        document: content of ``decision.json``.
        path: file to write.

    Raises:
        RankwiseError: it cannot be written.
    """
    template = page_template("shrink", ("plain_bytes", "seconds", "signed", "share"))
    parts = []
    for number, adapter in enumerate(document["adapters"]):
        rows = [row for row in document["table"] if row["adapter"] == adapter["adapter"]]
        figures = {"loss": loss_figure(rows, document), "size": size_figure(rows, document)}
        plots = {
            name: figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"plot-{name}-{number}",
                config=CONFIG,
            )
            for name, figure in figures.items()
        }
        parts.append({"adapter": adapter, "rows": rows, "plots": plots})
    page = template.render(
        document=document,
        parts=parts,
        plotly=get_plotlyjs(),
        percent=is_share(document["score"]),
        outcomes=OUTCOMES,
        rank_name=rank_name,
        chosen=lambda row: is_chosen(document, row),
        training_cost=training_cost(document),
    )
    write_whole(path, page.encode())


def loss_figure(rows: list[dict[str, Any]], document: dict[str, Any]) -> go.Figure:
    """Plot how much worse each truncation is than the adapter, with its bounds and the margin."""
    shown = [row for row in rows if row["rank"] and row["difference"] is not None]
    figure = new_figure("Held-out loss minus that of the adapter itself")
    kinds = (
        (False, False, "circle", "one rank"),
        (True, False, "diamond", "per layer"),
        (False, True, "star", "healed"),
    )
    for per_layer, healed, symbol, name in kinds:
        kind = [row for row in shown if (row["per_layer"], row["healed"]) == (per_layer, healed)]
        if not kind:
            continue
        colours = [_colour(row, document) for row in kind]
        figure.add_scatter(
            x=[row["rank"] * (1.06 if per_layer or healed else 1.0) for row in kind],
            y=[row["difference"] for row in kind],
            error_y={
                "type": "data",
                "array": [_reach(row, "upper") for row in kind],
                "arrayminus": [_reach(row, "lower") for row in kind],
                "color": GREY,
            },
            mode="markers",
            name=name,
            marker={"size": 12, "symbol": symbol, "color": colours},
            customdata=[rank_name(row) for row in kind],
            hovertemplate="rank %{customdata}: %{y:+.4f}<extra></extra>",
        )
    line = {"dash": "dot", "color": ORANGE}
    figure.add_hline(
        y=document["margin"],
        line=line,
        annotation={"text": "margin"},
        annotation_position="right",
    )
    # A cut that costs much would press the ones that matter together.
    limit = 4 * document["margin"]
    highest = max([row["difference"] + _reach(row, "upper") for row in shown], default=limit)
    lowest = min([row["difference"] - _reach(row, "lower") for row in shown], default=-limit)
    figure.update_yaxes(range=[max(lowest, -limit) - 0.005, min(highest, limit) + 0.005])
    figure.update_layout(margin_r=65, showlegend=len(figure.data) > 1)
    return figure.update_xaxes(**rank_axis(sorted({row["rank"] for row in shown})))


def _reach(row: dict[str, Any], side: str) -> float:
    """Return the length of an error bar; 0 without a bound."""
    if row["outcome"] == "itself" or row[side] is None:
        return 0.0
    return abs(float(row[side] - row["difference"]))


def _colour(row: dict[str, Any], document: dict[str, Any]) -> str:
    if is_chosen(document, row):
        return GREEN
    return BLUE if row["outcome"] in ("within", "itself") else GREY


def size_figure(rows: list[dict[str, Any]], document: dict[str, Any]) -> go.Figure:
    """Plot the size of the adapter's file at each rank."""
    shown = [row for row in rows if row["rank"] and not (row["per_layer"] or row["healed"])][::-1]
    bars = go.Bar(
        x=[str(row["rank"]) for row in shown],
        y=[row["bytes"] / 2**20 for row in shown],
        customdata=[formatting.plain_bytes(row["bytes"]) for row in shown],
        marker={"color": [_colour(row, document) for row in shown]},
        width=0.5,
        hovertemplate="rank %{x}: %{customdata}<extra></extra>",
    )
    figure = new_figure("Size of the adapter, MiB", bars)
    return figure.update_xaxes(title="rank", type="category")
