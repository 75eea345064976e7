"""The spectra of an adapter, or what two adapters share, as a heat map."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankwise.formatting import common_start
from rankwise.lora.inspection import Inspection
from rankwise.lora.spectra import MOST
from rankwise.report.figure_files import write_figure
from rankwise.report.figures import ORANGE

COLUMNS = 2  # a third one's titles would meet its neighbours' in a narrow window
FEW = 8  # directions, each of which has a tick: plotly would put some at 1.5 too


def write_inspection_plot(inspection: Inspection, path: Path) -> None:
    """Draw the spectra, or where two adapters were compared their similarity.

    Raises:
        RankwiseError: the file cannot be written, see `write_figure`.
    """
    figure = (
        spectra_figure(inspection) if inspection.other is None else similarity_figure(inspection)
    )
    write_figure(figure, path, width=1000, height=int(figure.layout.height))


def spectra_figure(inspection: Inspection) -> go.Figure:
    """Return a row for each layer: the energy that a cut to each rank keeps, with three figures marked in it."""
    layers = inspection.spectrum.layers
    start = common_start([layer.pair.name for layer in layers])
    names = [layer.pair.name.removeprefix(start) for layer in layers]
    largest = inspection.spectrum.largest_rank
    energy = [
        (100 * layer.energy).tolist() + [None] * (largest - layer.pair.rank) for layer in layers
    ]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(1, largest + 1)),
            y=names,
            z=energy,
            zmin=0,
            zmax=100,
            colorscale=[
                [0, "#ffffff"],
                [0.5, "#dbeafe"],
                [0.9, "#60a5fa"],
                [0.99, "#1d4ed8"],
                [1, "#1e3a8a"],
            ],
            colorbar={"title": "energy<br>left, %", "tickvals": [0, 50, 90, 100], "thickness": 14},
            hovertemplate="%{y}<br>cut to rank %{x}: %{z:.1f} %<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    marks = (
        (
            f"rank for {100 * MOST:g} %",
            [layer.rank_for(MOST) for layer in layers],
            "square",
            "#ffffff",
        ),
        ("effective rank", [layer.effective_rank for layer in layers], "circle", "#facc15"),
        ("stable rank", [layer.stable_rank for layer in layers], "diamond", ORANGE),
    )
    for name, values, symbol, colour in marks:
        figure.add_trace(
            go.Scatter(
                x=values,
                y=names,
                mode="markers",
                name=name,
                marker={
                    "symbol": symbol,
                    "size": 8,
                    "color": colour,
                    "line": {"width": 1, "color": "#111827"},
                },
                hovertemplate=f"%{{y}}<br>{name}: %{{x:.1f}}<extra></extra>",
            )
        )
    figure.update_layout(
        **_layout(f"Energy that a cut of each layer keeps: {_name(inspection.adapter)}")
    )
    # In a narrow window the legend has a line for each of its three marks, below the title.
    figure.update_layout(
        height=175 + max(18 * len(names), 180),
        margin_t=115,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11}, showgrid=False, dtick=1)
    return figure.update_xaxes(
        title="rank", showgrid=False, zeroline=False, range=[0.5, largest + 0.5]
    )


def similarity_figure(inspection: Inspection) -> go.Figure:
    """Return phi(i, j) of Hu et al. 2021, equation 4, a panel for each kind of layer, averaged over its depth."""
    kinds: dict[str, list[Any]] = {}
    for layer in inspection.overlaps:
        kind = ".".join(part for part in layer.name.split(".") if not part.isdigit())
        kinds.setdefault(kind, []).append(layer.similarity)
    rows = -(-len(kinds) // COLUMNS)
    titles = [
        f"{_shortest(kind, list(kinds))}{f', mean of {len(found)}' if len(found) > 1 else ''}"
        for kind, found in kinds.items()
    ]
    height = 150 + 280 * rows
    figure = make_subplots(
        rows, COLUMNS, subplot_titles=titles, horizontal_spacing=0.16, vertical_spacing=80 / height
    )
    highest = 0.0
    for index, found in enumerate(kinds.values()):
        i, j = (min(one.shape[side] for one in found) for side in (0, 1))
        mean = sum(one[:i, :j] for one in found) / len(found)  # (i, j)
        highest = max(highest, float(mean.max()))
        figure.add_trace(
            go.Heatmap(
                x=list(range(1, j + 1)),
                y=list(range(1, i + 1)),
                z=mean.tolist(),
                coloraxis="coloraxis",
                hovertemplate="i = %{y}, j = %{x}: %{z:.3f}<extra></extra>",
            ),
            index // COLUMNS + 1,
            index % COLUMNS + 1,
        )
    title = f"Subspace similarity of A:<br>{_name(inspection.adapter)} (i) and {_name(inspection.other)} (j)"
    figure.update_layout(**_layout(title))
    figure.update_annotations(font_size=11)
    figure.update_xaxes(title={"text": "j", "standoff": 4}, constrain="domain", showgrid=False)
    figure.update_yaxes(title={"text": "i", "standoff": 4}, showgrid=False)
    if max(max(one.shape) for found in kinds.values() for one in found) <= FEW:
        figure.update_xaxes(dtick=1, tick0=1).update_yaxes(dtick=1, tick0=1)
    return figure.update_layout(
        height=height,
        coloraxis={
            "colorscale": "Blues",
            "cmin": 0,
            "cmax": highest,
            "colorbar": {"title": "phi(i, j)", "thickness": 14},
        },
    )


def _shortest(name: str, names: list[str]) -> str:
    """Return the fewest last parts of a dotted name that tell it from the others."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in names) == 1:
            return end
    return name


def _name(path: Path | None) -> str:
    """Name an adapter by the last parts of its path, of which one alone is often no more than "adapter"."""
    return "" if path is None else "/".join(path.parts[-2:])


def _layout(title: str) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "title": {
            "text": title,
            "font": {"size": 15},
            "x": 0.01,
            "y": 0.99,
            "yanchor": "top",
            "pad": {"t": 12},
        },
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 60, "r": 20, "t": 90, "b": 50},
    }
