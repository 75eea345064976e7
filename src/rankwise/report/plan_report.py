"""A plan in the terminal and as a plot."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rankwise.escaping import page
from rankwise.formatting import plain_bytes
from rankwise.planning.fused_plan import SweepPlan
from rankwise.planning.plan import Plan
from rankwise.report.style import FONT, GREY, new_table, print_lines, wide_console

if TYPE_CHECKING:
    import plotly.graph_objects as go

BASES = {"int8": "int8", "nf4": "NF4", "nf4-dq": "NF4, double quantisation"}
GIB = 2.0**30
COLOURS = {  # lasting parts at the bottom of a bar, short-lived parts on top
    "weights": "#1e3a8a",
    "adapter": "#15803d",
    "gradients": "#4ade80",
    "optimizer": "#bbf7d0",
    "activations": "#d97706",
    "logits": "#fcd34d",
    "context": "#9ca3af",
}


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print parameters and memory per rank, the comparison of quantisations, and what fits."""
    console = wide_console(console)
    print_lines(console, plan.config.model, _request_line(plan))
    console.print(_memory_table(plan))
    console.print(_quantization_table(plan))
    print_lines(
        console, *_limit_lines(plan), *_sweep_lines(plan), *(f"Note: {note}" for note in plan.notes)
    )


def plan_figure(plan: Plan) -> "go.Figure":
    """Return a plot with a stacked bar of memory for each rank, and the device's memory."""
    import plotly.graph_objects as go

    ranks = [str(row.rank) for row in plan.rows]
    memories: list[dict[str, int]] = [row.memory.as_dict() for row in plan.rows]
    figure = go.Figure()
    for name, colour in COLOURS.items():
        sizes = [memory[name] for memory in memories]
        if any(sizes):
            figure.add_bar(
                name=name,
                x=ranks,
                y=[size / GIB for size in sizes],
                customdata=[plain_bytes(size) for size in sizes],
                hovertemplate=f"rank %{{x}}, {name}: %{{customdata}}<extra></extra>",
                marker={"color": colour},
                width=0.55,
            )
    totals = [memory["peak_allocated"] + memory["context"] for memory in memories]
    figure.add_scatter(
        x=ranks,
        y=[total / GIB for total in totals],
        text=[plain_bytes(total) for total in totals],
        mode="text",
        textposition="top center",
        showlegend=False,
        hoverinfo="skip",
    )
    highest = max(totals) / GIB
    if plan.room is not None:
        highest = max(highest, plan.room / GIB)
        device = f"{plan.config.device or 'memory'}<br>{plain_bytes(plan.room)}"
        figure.add_hline(
            y=plan.room / GIB,
            line={"dash": "dot", "color": GREY},
            annotation={"text": device, "align": "left"},
            annotation_position="right",
        )
    return figure.update_layout(**_layout(plan, highest))


def _request_line(plan: Plan) -> str:
    config = plan.config
    base = BASES.get(config.quantization, config.precision)
    if config.quantization != "none":
        base += f" computing in {config.precision}"
    batch = f"batch {config.batch_size}"
    if plan.task_type != "IMAGE_CLS":
        batch += f" x {config.seq_len} tokens"
    checkpointing = ", gradient checkpointing" if config.gradient_checkpointing else ""
    if plan.sweep is not None:
        checkpointing = f"; {_passes(plan.sweep)}; engine fused"
    setup = f"{plan.task_type}, {base}, {batch}, {config.optimizer}{checkpointing}"
    return f"{setup}; on {plan.device.name}"


def _memory_table(plan: Plan) -> Table:
    """Return a table with a column for each rank and a row for each part of the memory."""
    table = new_table(
        "Parameters and memory of a training step",
        "Memory that gradients take over from activations and logits counts once, as gradients.",
    )
    table.add_column("rank" if plan.sweep is None else "rank of a trial alone")
    for row in plan.rows:
        table.add_column(str(row.rank), justify="right", style="red" if row.fits is False else None)
    params = [row.params for row in plan.rows]
    table.add_row("trainable parameters", *(f"{each.trainable:,}" for each in params))
    table.add_row("all parameters", *(f"{each.all:,}" for each in params))
    table.add_row("share trainable", *(f"{each.percent:.3f} %" for each in params))
    sizes = [plain_bytes(each.adapter_bytes) for each in params]
    table.add_row("adapter file", *sizes, end_section=True)
    memories = [row.memory for row in plan.rows]
    for name in ("weights", "adapter", "gradients", "optimizer", "activations", "logits"):
        sizes = [plain_bytes(getattr(memory, name)) for memory in memories]
        table.add_row(name, *sizes, end_section=name == "logits")
    peaks = [plain_bytes(memory.peak_allocated) for memory in memories]
    table.add_row("training peak", *peaks, style="bold")
    if plan.other_loop:
        peaks = [plain_bytes(plan.other_loop[row.rank].peak_allocated) for row in plan.rows]
        table.add_row(f"training peak {_other_loop(plan)}", *peaks)
    if plan.sweep is None:
        table.add_row("evaluation peak", *(plain_bytes(memory.peak_eval) for memory in memories))
    if plan.room is not None:
        table.add_row("fits", *("yes" if row.fits else "no" for row in plan.rows))
        margins = [row.margin or 0 for row in plan.rows]
        left = [("-" if margin < 0 else "") + plain_bytes(abs(margin)) for margin in margins]
        table.add_row("left on the device", *left)
    return table


def _other_loop(plan: Plan) -> str:
    return "without autocast" if plan.config.autocast else "with autocast"


def _quantization_table(plan: Plan) -> Table:
    """Return the training peak of each rank by quantisation, and the adapter's share of it."""
    table = new_table(
        "Training peak by precision of the base model",
        "Adapter's share: its parameters, gradients and optimizer states.",
    )
    table.add_column("rank", justify="right")
    for name in plan.by_quantization:
        table.add_column(BASES.get(name, plan.config.precision), justify="right")
        table.add_column("adapter's share", justify="right")
    for row in plan.rows:
        adapter = row.memory.adapter + row.memory.gradients + row.memory.optimizer
        cells = [str(row.rank)]
        for peaks in plan.by_quantization.values():
            peak = peaks[row.rank]
            cells += [plain_bytes(peak), f"{100 * adapter / peak:.2f} %"]
        table.add_row(*cells)
    return table


def _limit_lines(plan: Plan) -> list[str]:
    """Return sentences about what fits the device; none without a device."""
    if plan.room is None or plan.limits is None:
        return []
    config, limits = plan.config, plan.limits
    # A request may allow less memory than the device has.
    name = config.device if config.device and config.memory is None else "Memory"
    context = plain_bytes(plan.rows[0].memory.context)
    room = plain_bytes(plan.room)
    lines = [f"{name}: {room}, of which the driver's context takes about {context}."]
    if any(row.margin is not None and 0 <= row.margin < plan.room / 10 for row in plan.rows):
        lines.append(
            "A rank that leaves less than a tenth of it is a tight fit: memory that the allocator "
            "reserves but does not use is not counted."
        )
    cap = ", the highest that any layer can use" if limits.rank == limits.highest_rank else ""
    largest = f"The largest rank that fits: {limits.rank}{cap}."
    lines.append("No rank fits." if limits.rank is None else largest)
    fitting = [rank for rank, memory in plan.other_loop.items() if memory.needed <= plan.room]
    if plan.other_loop and fitting != [row.rank for row in plan.rows if row.fits]:
        ranks = ", ".join(map(str, fitting)) or "no rank"
        lines.append(f"In a loop {_other_loop(plan)} these fit: {ranks}.")
    if limits.batch_size is not None:
        batch = f"{limits.batch_size} x {config.seq_len} tokens"
        lines.append(f"The largest batch at rank {limits.at_rank}: {batch}.")
    if limits.seq_len is not None:
        longest = f"{limits.seq_len} tokens, batch {config.batch_size}"
        lines.append(f"The longest sequences at rank {limits.at_rank}: {longest}.")
    if plan.savings:
        lines.append(f"What to change first, at rank {plan.rows[0].rank}:")
    for saving in plan.savings:
        fits = "; then it fits" if saving.fits else ""
        lines.append(f"  {saving.change} saves {plain_bytes(saving.saves)}{fits}")
    return lines


def _sweep_lines(plan: Plan) -> list[str]:
    """Return sentences about a sweep of the fused engine; none for the reference engine."""
    sweep, config = plan.sweep, plan.config
    if sweep is None:
        return []
    lines = []
    if sweep.at_once is not None and sweep.pack_bytes is not None and plan.room is not None:
        size, room = plain_bytes(sweep.pack_bytes), plain_bytes(plan.room)
        largest = f"of rank {config.ranks[-1]}"
        pack = f"{sweep.at_once} trials {largest} at once"
        if sweep.at_once == 1:
            pack = f"one trial {largest} at a time"
        if sweep.at_once == 0:
            lines.append(f"Does not fit: one trial {largest} needs {size}, and there are {room}.")
        else:
            lines.append(f"Fits: {pack}, in {size} of {room}.")
    trials = f"ranks {', '.join(map(str, config.ranks))} x {config.seeds} seeds"
    trials += f" = {sweep.trials} trials"
    work = f"{sweep.flop_per_token / 1e9:.3g} GFLOP of useful work a token"
    if sweep.tokens is not None:
        examples = f"{config.train_examples:,} examples of {config.seq_len} tokens"
        trials += (
            f", each on {config.epochs} x {examples}: {sweep.tokens / 1e6:,.3g} million tokens"
        )
    lines.append(f"Sweep: {trials}; {work}.")
    lines.append(_time_line(sweep, config.tflops))
    return lines


def _time_line(sweep: SweepPlan, tflops: float | None) -> str:
    """Say how long the training of a sweep takes, or what is needed to say it."""
    if sweep.tokens_per_second is None:
        return (
            "Time: --tflops and --train-examples give the hours; rankwise sweep --dry-run measures "
            "the TFLOP/s of a device."
        )
    rate = f"at {tflops:g} TFLOP/s, {sweep.tokens_per_second:,.0f} tokens per second"
    if sweep.hours is None:
        return f"Time: {rate}; for the whole sweep give --train-examples."
    return f"Time: {_hours(sweep.hours)} of training {rate}; scoring comes on top."


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 2 else f"{60 * hours:,.1f} minutes"


def _passes(sweep: SweepPlan) -> str:
    """Say how a batch goes through the base."""
    tokens = sweep.micro_batch_tokens
    passes = "whole batches" if tokens is None else f"passes of at most {tokens} tokens"
    return passes + (", gradient checkpointing" if sweep.gradient_checkpointing else "")


def _layout(plan: Plan, highest: float) -> dict[str, Any]:
    config = plan.config
    name = page(Path(config.model).name or config.model)
    base = config.precision if config.quantization == "none" else config.quantization
    batch = f"batch {config.batch_size} x {config.seq_len}"
    title = f"Memory of a training step by rank, GiB<br>{name}, {base}, {batch}"
    return {
        "barmode": "stack",
        "template": "plotly_white",
        "title": {"text": title, "font": {"size": 15}, "x": 0.01},
        "font": FONT,
        "margin": {"l": 60, "r": 90, "t": 80, "b": 50},
        "height": 560,
        "xaxis": {"title": "rank", "type": "category"},
        "yaxis": {"range": [0, 1.12 * highest]},
        "legend": {"orientation": "h", "y": -0.15, "yanchor": "top"},
    }
