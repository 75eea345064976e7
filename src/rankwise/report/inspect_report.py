"""An adapter's spectra in the terminal and as a heat map, and the result of resizing an adapter."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rankwise.errors import some
from rankwise.escaping import page
from rankwise.lora.inspection import CAUTION, Inspection
from rankwise.lora.overlap import LayerOverlap
from rankwise.lora.resize import Resized
from rankwise.lora.spectra import NEARLY_ALL, LayerSpectrum
from rankwise.report.style import FONT, ORANGE, new_table, print_lines, wide_console

if TYPE_CHECKING:
    import plotly.graph_objects as go

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 16
PANEL_COLUMNS = 2  # in a narrow window, the titles of three columns would meet
FEW_DIRECTIONS = 8  # up to here every direction has a tick; plotly might add one at 1.5
COLOUR_BAR = {  # below the plot, where it takes no width
    "orientation": "h", "thickness": 14, "len": 0.8, "tickangle": 0,
    "xref": "container", "yref": "container", "x": 0.5, "y": 0.0, "yanchor": "bottom",
}  # fmt: skip
ENERGY_COLOURS = [
    [0, "#ffffff"], [0.5, "#dbeafe"], [0.9, "#60a5fa"], [0.99, "#1d4ed8"], [1, "#1e3a8a"],
]  # fmt: skip


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print a row for each layer, the energy that truncation would keep, and the caveats."""
    console = wide_console(console)
    lines = _summary(inspection)
    print_lines(console, f"Spectra of delta-W: {inspection.adapter}")
    console.print(_spectra_table(inspection))
    if inspection.other is not None:
        print_lines(console, f"Directions shared with {inspection.other} (expected by chance)")
        console.print(_overlap_table(inspection))
        lines.append(_overlap_summary(inspection.overlaps))
    notes = [f"Note: {note}" for note in (*inspection.notes, CAUTION)]
    print_lines(console, *lines, *notes, wrap=True)


def print_resized(resized: Resized, console: Console | None = None) -> None:
    """Print the ranks, the number of parameters and the energy kept of a resized adapter."""
    console = wide_console(console)
    layers = resized.layers
    before = _range({layer.rank_before for layer in layers})
    after = _range({layer.rank for layer in layers})
    lines = [
        f"Rank {before} to {after} in {len(layers)} layers; parameters of A and B: "
        f"{resized.params_before:,} to {resized.params:,}."
    ]
    if all(layer.rank >= layer.rank_before for layer in layers):
        lines.append("delta-W is unchanged.")
    else:
        least = min(layers, key=lambda layer: layer.energy)
        lines.append(
            f"Energy kept: {100 * resized.energy:.2f} %; the least in {least.name}: "
            f"{100 * least.energy:.2f} %. Energy is not quality: compare held-out losses before "
            "and after."
        )
    if resized.dtypes:
        dtypes = " and ".join(resized.dtypes)
        lines.append(f"Rounding to {dtypes} moved delta-W by {100 * resized.rounding:.2g} %.")
    for verb, names in (("Copied", resized.copied), ("Left behind", resized.left)):
        if names:
            lines.append(f"{verb}: {some(names, 12)}.")
    print_lines(console, *lines, f"Adapter: {resized.out}")


def write_inspection_plot(inspection: Inspection, path: Path) -> None:
    """Draw the spectra of one adapter, or the similarity of two, into an .html or .png file."""
    from rankwise.report.figures import write_figure

    draw = spectra_figure if inspection.other is None else similarity_figure
    write_figure(draw(inspection), path)


def spectra_figure(inspection: Inspection) -> "go.Figure":
    """Return a heat map: for each layer, the energy that truncation to each rank keeps.

    Three ranks are marked in each row: for 99 % of the energy, effective and stable.
    """
    import plotly.graph_objects as go

    layers = inspection.spectrum.layers
    names = [page(name) for name in _short_names([layer.pair.name for layer in layers])]
    largest = inspection.spectrum.largest_rank
    energy = [(100 * layer.energy).tolist() for layer in layers]
    energy_map = go.Heatmap(
        x=list(range(1, largest + 1)),
        y=names,
        z=[row + [None] * (largest - len(row)) for row in energy],
        zmin=0,
        zmax=100,
        colorscale=ENERGY_COLOURS,
        colorbar={**COLOUR_BAR, "title": _top("energy kept, %"), "tickvals": [0, 50, 100]},
        hovertemplate="%{y}<br>truncated to rank %{x}: %{z:.1f} % kept<extra></extra>",
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(energy_map)
    ranks_for_most = [layer.rank_for(NEARLY_ALL) for layer in layers]
    effective = [layer.effective_rank for layer in layers]
    stable = [layer.stable_rank for layer in layers]
    for label, ranks, symbol, colour in (
        (f"rank for {100 * NEARLY_ALL:g} %", ranks_for_most, "square", "#ffffff"),
        ("effective rank", effective, "circle", "#facc15"),
        ("stable rank", stable, "diamond", ORANGE),
    ):
        line = {"width": 1, "color": "#111827"}
        figure.add_scatter(
            x=ranks,
            y=names,
            mode="markers",
            name=label,
            marker={"symbol": symbol, "size": 8, "color": colour, "line": line},
            hovertemplate=f"%{{y}}<br>{label}: %{{x:.1f}}<extra></extra>",
        )
    title = f"Energy that truncation of each layer keeps<br>{page(_short_path(inspection.adapter))}"
    figure.update_layout(**_layout(title))
    # In a narrow window the legend has a line for each of its three marks, below the title.
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom"}
    height = 250 + max(18 * len(names), 180)
    figure.update_layout(height=height, margin_t=130, legend=legend)
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11}, showgrid=False, dtick=1)
    shown = [0.5, largest + 0.5]
    return figure.update_xaxes(title="rank", showgrid=False, zeroline=False, range=shown)


def similarity_figure(inspection: Inspection) -> "go.Figure":
    """Return a heat map of phi(i, j) (Hu et al. 2021, equation 4) for each kind of layer.

    Layers of the same kind at different depths are averaged.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    kinds: dict[str, list[Any]] = {}
    for layer in inspection.overlaps:
        kind = ".".join(part for part in layer.name.split(".") if not part.isdigit())
        kinds.setdefault(kind, []).append(layer.similarity)
    titles = []
    for kind, similarities in kinds.items():
        depth = f"<br>mean of {len(similarities)}" if len(similarities) > 1 else ""
        titles.append(page(_unique_ending(kind, list(kinds))) + depth)
    rows = -(-len(kinds) // PANEL_COLUMNS)
    height = 230 + 300 * rows
    figure = make_subplots(
        rows,
        PANEL_COLUMNS,
        subplot_titles=titles,
        horizontal_spacing=0.16,
        vertical_spacing=95 / height,
    )
    highest = 0.0
    for index, similarities in enumerate(kinds.values()):
        mean = _mean_similarity(similarities)  # (i, j)
        highest = max(highest, float(mean.max()))
        panel = go.Heatmap(
            x=list(range(1, mean.shape[1] + 1)),
            y=list(range(1, mean.shape[0] + 1)),
            z=mean.tolist(),
            coloraxis="coloraxis",
            hovertemplate="i = %{y}, j = %{x}: %{z:.3f}<extra></extra>",
        )
        figure.add_trace(panel, index // PANEL_COLUMNS + 1, index % PANEL_COLUMNS + 1)
    first, second = page(_short_path(inspection.adapter)), page(_short_path(inspection.other))
    figure.update_layout(**_layout(f"Subspace similarity of A<br>i: {first}, j: {second}"))
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title={"text": "j", "standoff": 4}, constrain="domain", showgrid=False)
    figure.update_yaxes(title={"text": "i", "standoff": 4}, showgrid=False)
    if max(max(layer.similarity.shape) for layer in inspection.overlaps) <= FEW_DIRECTIONS:
        figure.update_xaxes(dtick=1, tick0=1).update_yaxes(dtick=1, tick0=1)
    colours = {"colorscale": "Blues", "cmin": 0, "cmax": highest}
    bar = {**COLOUR_BAR, "title": _top("phi(i, j)")}
    return figure.update_layout(height=height, coloraxis={**colours, "colorbar": bar})


def _spectra_table(inspection: Inspection) -> Table:
    layers = inspection.spectrum.layers
    start = _common_start([layer.pair.name for layer in layers])
    table = new_table(
        caption=f"{_start_note(start)}For 90 % (99 %): the smallest rank that keeps that share of "
        "the energy. Spectrum: singular values relative to the largest."
    )
    table.add_column("layer", overflow="fold")
    names = "rank|effective\nrank|stable\nrank|for\n90 %|for\n99 %|uses its\nrank|norm"
    for name in names.split("|"):
        table.add_column(name, justify="right")
    table.add_column("spectrum")
    for layer in layers:
        table.add_row(
            layer.pair.name.removeprefix(start),
            str(layer.pair.rank),
            f"{layer.effective_rank:.1f}",
            f"{layer.stable_rank:.1f}",
            str(layer.rank_for(0.9)),
            str(layer.rank_for(NEARLY_ALL)),
            "yes" if layer.uses_rank else "no",
            f"{layer.norm:.3f}",
            _spectrum_bars(layer),
            style=None if layer.uses_rank else "dim",
        )
    return table


def _spectrum_bars(layer: LayerSpectrum) -> str:
    """Draw singular values relative to the largest; of many, the first of each group."""
    values = layer.values.tolist()
    if values[0] <= 0:
        return ""
    group = -(-len(values) // MOST_BARS)
    return "".join(BARS[round(value / values[0] * (len(BARS) - 1))] for value in values[::group])


def _summary(inspection: Inspection) -> list[str]:
    """Return sentences on the energy that truncation keeps and on layers that waste rank."""
    layers = inspection.spectrum.layers
    energies = inspection.energy_by_rank()
    kept = ", ".join(f"rank {rank}: {100 * share:.1f} %" for rank, share in energies.items())
    energy = f"Energy (sum of squared singular values) kept if every layer is truncated to {kept}."
    idle = [layer for layer in layers if not layer.uses_rank]
    if not idle:
        used = "Every layer uses its rank: more than half of it is needed for 99 % of the energy."
        return [energy, used]
    verb = "does not use its" if len(idle) == 1 else "do not use their"
    who = f"{len(idle)} of {len(layers)} layers {verb} rank"
    if len(idle) == len(layers):
        who = "No layer uses its rank"
    lowest = sorted(idle, key=lambda layer: layer.rank_for(NEARLY_ALL) / layer.pair.rank)[:3]
    lowest_ranks = ", ".join(
        f"{layer.pair.name} ({layer.rank_for(NEARLY_ALL)} of {layer.pair.rank})" for layer in lowest
    )
    return [energy, f"{who}: half of it or less holds 99 % of the energy. Lowest: {lowest_ranks}."]


def _overlap_table(inspection: Inspection) -> Table:
    start = _common_start([layer.name for layer in inspection.overlaps])
    table = new_table(
        caption=f"{_start_note(start)}Shared: the sum of the squared cosines of the principal "
        "angles between the two subspaces."
    )
    table.add_column("layer", overflow="fold")
    for name in ("ranks", "shared inputs (A)", "shared outputs (B)"):
        table.add_column(name, justify="right")
    for layer in inspection.overlaps:
        table.add_row(
            layer.name.removeprefix(start),
            ", ".join(map(str, layer.similarity.shape)),
            f"{layer.shared_inputs:.2f} ({layer.chance_inputs:.2f})",
            f"{layer.shared_outputs:.2f} ({layer.chance_outputs:.2f})",
        )
    return table


def _overlap_summary(layers: Sequence[LayerOverlap]) -> str:
    directions = fmean(min(layer.similarity.shape) for layer in layers)
    inputs = fmean(layer.shared_inputs for layer in layers)
    chance_inputs = fmean(layer.chance_inputs for layer in layers)
    outputs = fmean(layer.shared_outputs for layer in layers)
    chance_outputs = fmean(layer.chance_outputs for layer in layers)
    return (
        f"Of {directions:.3g} directions per layer, the two adapters share on average {inputs:.2f} "
        f"of the inputs (A; by chance {chance_inputs:.2f}) and {outputs:.2f} of the outputs (B; by "
        f"chance {chance_outputs:.2f}). A keeps much of its random start; all of B was learnt."
    )


def _mean_similarity(similarities: Sequence[Any]) -> Any:
    """Average similarities over their common directions, (i, j)."""
    i = min(each.shape[0] for each in similarities)
    j = min(each.shape[1] for each in similarities)
    return sum(each[:i, :j] for each in similarities) / len(similarities)


def _common_start(names: Sequence[str]) -> str:
    """Return the start that all dotted names share, without their last parts: ``"model.h."``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


def _short_names(names: Sequence[str]) -> list[str]:
    """Drop the start that all numbered layers share, ``"model.h."``, from the names."""
    numbered = [name for name in names if any(part.isdigit() for part in name.split("."))]
    start = _common_start(numbered or names)
    return [name.removeprefix(start) for name in names]


def _start_note(start: str) -> str:
    return f"Layers of {start.removesuffix('.')}. " if start else ""


def _unique_ending(name: str, names: list[str]) -> str:
    """Return the fewest last parts of a dotted name that distinguish it from the others."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        ending = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{ending}") for other in names) == 1:
            return ending
    return name


def _short_path(path: Path | None) -> str:
    """Return the last two parts of an adapter's path; the last alone is often just "adapter"."""
    return "" if path is None else "/".join(path.parts[-2:])


def _range(ranks: set[int]) -> str:
    return str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)}..{max(ranks)}"


def _top(text: str) -> dict[str, str]:
    return {"text": text, "side": "top"}


def _layout(title: str) -> dict[str, Any]:
    corner = {"x": 0.01, "y": 0.99, "yanchor": "top", "pad": {"t": 12}}
    return {
        "template": "plotly_white",
        "title": {"text": title, "font": {"size": 15}, **corner},
        "font": FONT,
        "margin": {"l": 60, "r": 20, "t": 110, "b": 120},
    }
