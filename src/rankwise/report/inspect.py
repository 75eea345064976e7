"""The spectra of an adapter on screen, and what became of a resized one."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rankwise.formatting import common_start
from rankwise.lora.inspection import CAUTION, Inspection
from rankwise.lora.overlap import LayerOverlap
from rankwise.lora.resize import Resized
from rankwise.lora.spectra import MOST, LayerSpectrum

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 16


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print a row for each layer, what cuts would keep, and what these figures do not tell."""
    console = _wide(console)
    lines = _summary(inspection)
    _print_line(console, f"Spectra of delta-W: {inspection.adapter}")
    console.print(_spectra(inspection))
    if inspection.other is not None:
        _print_line(console, f"Directions shared with {inspection.other} (by chance)")
        console.print(_overlaps(inspection))
        lines.append(_shared(inspection.overlaps))
    for line in (*lines, *(f"Note: {note}" for note in (*inspection.notes, CAUTION))):
        console.print(line, highlight=False, markup=False)


def _spectra(inspection: Inspection) -> Table:
    layers = inspection.spectrum.layers
    start = common_start([layer.pair.name for layer in layers])
    table = Table(
        caption=f"{_of(start)}For 90 %: the rank that holds so much energy. Bars: singular values over the largest.",
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for name in (
        "rank",
        "effective\nrank",
        "stable\nrank",
        "for\n90 %",
        "for\n99 %",
        "uses\nrank",
        "norm",
    ):
        table.add_column(name, justify="right")
    table.add_column("spectrum")
    for layer in layers:
        table.add_row(
            layer.pair.name.removeprefix(start),
            str(layer.pair.rank),
            f"{layer.effective_rank:.1f}",
            f"{layer.stable_rank:.1f}",
            *(str(layer.rank_for(share)) for share in (0.9, MOST)),
            "yes" if layer.uses_rank else "no",
            f"{layer.norm:.3f}",
            _bars(layer),
            style=None if layer.uses_rank else "dim",
        )
    return table


def _bars(layer: LayerSpectrum) -> str:
    """Draw singular values over the largest one, the first of each group where there are many."""
    values = layer.values.tolist()
    if values[0] <= 0:
        return ""
    step = -(-len(values) // MOST_BARS)
    return "".join(BARS[round(value / values[0] * (len(BARS) - 1))] for value in values[::step])


def _of(start: str) -> str:
    return f"Layers of {start.removesuffix('.')}. " if start else ""


def _summary(inspection: Inspection) -> list[str]:
    layers = inspection.spectrum.layers
    kept = ", ".join(
        f"{rank}: {100 * share:.1f} %" for rank, share in inspection.energy_by_rank().items()
    )
    lines = [
        f"Energy (squared singular values) that is left by a cut of every layer to rank {kept}."
    ]
    idle = [layer for layer in layers if not layer.uses_rank]
    if not idle:
        lines.append(
            "Every layer uses its rank: more than half of it is needed for 99 % of the energy."
        )
    else:
        do = "does not use its" if len(idle) == 1 else "do not use their"
        what = (
            f"{len(idle)} of {len(layers)} layers {do} rank"
            if len(idle) < len(layers)
            else "No layer uses its rank"
        )
        lines.append(
            f"{what}: half of it or less holds 99 % of the energy. The least: {_least(idle)}."
        )
    return lines


def _least(layers: list[LayerSpectrum], limit: int = 3) -> str:
    """Name the layers that need the smallest share of their rank."""
    found = sorted(layers, key=lambda layer: layer.rank_for(MOST) / layer.pair.rank)[:limit]
    return ", ".join(
        f"{layer.pair.name} ({layer.rank_for(MOST)} of {layer.pair.rank})" for layer in found
    )


def _overlaps(inspection: Inspection) -> Table:
    start = common_start([layer.name for layer in inspection.overlaps])
    table = Table(
        caption=f"{_of(start)}Shared: the squared cosines of the principal angles between two subspaces, summed.",
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for name in ("ranks", "of the inputs, A", "of the outputs, B"):
        table.add_column(name, justify="right")
    for layer in inspection.overlaps:
        table.add_row(
            layer.name.removeprefix(start),
            ", ".join(map(str, layer.similarity.shape)),
            f"{layer.shared_inputs:.2f} ({layer.chance_inputs:.2f})",
            f"{layer.shared_outputs:.2f} ({layer.chance_outputs:.2f})",
        )
    return table


def _shared(layers: Sequence[LayerOverlap]) -> str:
    """Sum the comparison up."""
    smaller = sum(min(layer.similarity.shape) for layer in layers) / len(layers)
    a, a_chance, b, b_chance = (
        sum(getattr(layer, what) for layer in layers) / len(layers)
        for what in ("shared_inputs", "chance_inputs", "shared_outputs", "chance_outputs")
    )
    return (
        f"Of {smaller:.3g} directions a layer, the two share on average {a:.2f} of the inputs (A; by chance "
        f"{a_chance:.2f}) and {b:.2f} of the outputs (B; by chance {b_chance:.2f}). A keeps much of its random start; "
        "all of B was learnt."
    )


def print_resized(resized: Resized, console: Console | None = None) -> None:
    """Print ranks, parameters and what is left of the energy."""
    console = _wide(console)
    layers = resized.layers
    before, after = ({getattr(layer, what) for layer in layers} for what in ("rank_before", "rank"))
    lines = [
        f"Rank {_span(before)} to {_span(after)} in {len(layers)} layers; parameters of A and B: "
        f"{resized.params_before:,} to {resized.params:,}."
    ]
    if all(layer.rank >= layer.rank_before for layer in layers):
        lines.append("delta-W is as it was.")
    else:
        least = min(layers, key=lambda layer: layer.energy)
        lines.append(
            f"Energy left: {100 * resized.energy:.2f} %; the least in {least.name}: {100 * least.energy:.2f} %. "
            "Energy is not quality: compare held-out losses before and after."
        )
    for line in (*lines, f"Adapter: {resized.out}"):
        _print_line(console, line)


def _print_line(console: Console, line: str) -> None:
    """Print a line that is never broken, whatever the path in it."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _span(ranks: set[int]) -> str:
    return str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)}..{max(ranks)}"


def _wide(console: Console | None) -> Console:
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        console = Console(file=console.file, width=120)
    return console
