"""A plan as a stacked bar for each rank."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rankwise.formatting import plain_bytes
from rankwise.planning.plan import Plan
from rankwise.report.figures import GREY

GIB = 2.0**30
COLOURS = {  # from what stays to what comes and goes
    "weights": "#1e3a8a",
    "adapter": "#15803d",
    "gradients": "#4ade80",
    "optimizer": "#bbf7d0",
    "activations": "#d97706",
    "logits": "#fcd34d",
    "context": "#9ca3af",
}


def plan_figure(plan: Plan) -> go.Figure:
    """Return the figure: a bar for each rank, its parts in GiB, and the device's memory as a line."""
    ranks = [str(row.rank) for row in plan.rows]
    parts: list[dict[str, int]] = [row.memory.as_dict() for row in plan.rows]
    figure = go.Figure()
    for name, colour in COLOURS.items():
        sizes = [part[name] for part in parts]
        if any(sizes):
            figure.add_trace(
                go.Bar(
                    name=name,
                    x=ranks,
                    y=[size / GIB for size in sizes],
                    customdata=[plain_bytes(size) for size in sizes],
                    hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
                    marker={"color": colour},
                    width=0.55,
                )
            )
    totals = [part["peak_allocated"] + part["context"] for part in parts]
    figure.add_trace(
        go.Scatter(
            x=ranks,
            y=[total / GIB for total in totals],
            text=[plain_bytes(total) for total in totals],
            mode="text",
            textposition="top center",
            hoverinfo="skip",
            showlegend=False,
        )
    )
    top = max(totals) / GIB
    if plan.room is not None:
        room = plan.room / GIB
        figure.add_hline(
            y=room,
            line={"dash": "dot", "color": GREY},
            annotation={
                "text": f"{plan.config.device or 'memory'}<br>{plain_bytes(plan.room)}",
                "align": "left",
            },
            annotation_position="right",
        )
        top = max(top, room)
    return figure.update_layout(**_layout(plan, top))


def _layout(plan: Plan, top: float) -> dict[str, Any]:
    config = plan.config
    name = Path(config.model).name or config.model
    base = config.precision if config.quantization == "none" else config.quantization
    return {
        "barmode": "stack",
        "template": "plotly_white",
        "title": {
            "text": f"Memory of a training step by rank, GiB: {name}, {base}, "
            f"batch {config.batch_size} x {config.seq_len}",
            "font": {"size": 15},
            "x": 0.01,
        },
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 60, "r": 90, "t": 90, "b": 50},
        "height": 540,
        "xaxis": {"title": "rank", "type": "category"},
        "yaxis": {"range": [0, 1.12 * top]},
        "legend": {"orientation": "h", "y": 1.1},
    }
