"""A plan on screen."""

from rich.console import Console
from rich.table import Table

from rankwise.formatting import plain_bytes
from rankwise.planning.plan import Plan

BASES = {"int8": "int8", "nf4": "NF4", "nf4-dq": "NF4, double quantisation"}


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print parameters, memory, the comparison of quantisations and what fits."""
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        console = Console(file=console.file, width=120)
    config = plan.config
    base = BASES.get(config.quantization, config.precision)
    if config.quantization != "none":
        base += f" computing in {config.precision}"
    batch = f"batch {config.batch_size}" + (
        "" if plan.task_type == "IMAGE_CLS" else f" x {config.seq_len} tokens"
    )
    more = ", gradient checkpointing" if config.gradient_checkpointing else ""
    lines = [
        f"{config.model}",
        f"{plan.task_type}, {base}, {batch}, {config.optimizer}{more}; for {plan.device.name}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_memory_table(plan))
    console.print(_quantization_table(plan))
    for line in (*_limits(plan), *(f"Note: {note}" for note in plan.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _memory_table(plan: Plan) -> Table:
    """A column for each rank, a row for each part."""
    table = Table(
        title="Parameters and memory of a training step",
        title_justify="left",
        caption="Memory that activations release before the gradients take it is counted once, as gradients.",
        caption_justify="left",
    )
    table.add_column("rank")
    for row in plan.rows:
        table.add_column(str(row.rank), justify="right", style="red" if row.fits is False else None)
    memories = [row.memory for row in plan.rows]
    table.add_row("trainable parameters", *(f"{row.params.trainable:,}" for row in plan.rows))
    table.add_row("all parameters", *(f"{row.params.all:,}" for row in plan.rows))
    table.add_row("trainable", *(f"{row.params.percent:.3f} %" for row in plan.rows))
    table.add_row(
        "adapter file",
        *(plain_bytes(row.params.adapter_bytes) for row in plan.rows),
        end_section=True,
    )
    for name in ("weights", "adapter", "gradients", "optimizer", "activations", "logits"):
        sizes = [plain_bytes(getattr(memory, name)) for memory in memories]
        table.add_row(name, *sizes, end_section=name == "logits")
    table.add_row(
        "peak of training",
        *(plain_bytes(memory.peak_allocated) for memory in memories),
        style="bold",
    )
    table.add_row("peak of evaluation", *(plain_bytes(memory.peak_eval) for memory in memories))
    if plan.room is not None:
        table.add_row("fits", *("yes" if row.fits else "no" for row in plan.rows))
        margins = [row.margin or 0 for row in plan.rows]
        table.add_row(
            "left on the device",
            *(f"{'-' if left < 0 else ''}{plain_bytes(abs(left))}" for left in margins),
        )
    return table


def _quantization_table(plan: Plan) -> Table:
    """The same ranks over the same base in fewer bits, and how little of it all is the rank's."""
    table = Table(
        title="Training peak by base, and what of it the rank takes", title_justify="left"
    )
    table.add_column("rank", justify="right")
    for name in plan.by_quantization:
        table.add_column(BASES.get(name, plan.config.precision), justify="right")
        table.add_column("rank's part", justify="right")
    for row in plan.rows:
        memory = row.memory
        own = memory.adapter + memory.gradients + memory.optimizer
        cells = [str(row.rank)]
        for peaks in plan.by_quantization.values():
            cells += [plain_bytes(peaks[row.rank]), f"{100 * own / peaks[row.rank]:.2f} %"]
        table.add_row(*cells)
    return table


def _limits(plan: Plan) -> list[str]:
    if plan.room is None or plan.limits is None:
        return []
    limits = plan.limits
    context = plan.rows[0].memory.context
    whose = (
        plan.config.device if plan.config.memory is None else None
    )  # less than the device has is not its size
    lines = [
        f"{whose or 'Memory'}: {plain_bytes(plan.room)}, of which the driver's context takes about "
        f"{plain_bytes(context)}."
    ]
    if any(row.margin is not None and 0 <= row.margin < plan.room / 10 for row in plan.rows):
        lines.append(
            "Less than a tenth of it left is tight: what the allocator reserves beyond that is not counted."
        )
    if limits.rank is None:
        lines.append("No rank fits.")
    else:
        cap = (
            ", the highest that any of its layers can use"
            if limits.rank == limits.highest_rank
            else ""
        )
        lines.append(f"The largest rank that fits: {limits.rank}{cap}.")
    if limits.batch_size is not None:
        lines.append(
            f"The largest batch at rank {limits.at_rank}: {limits.batch_size} x {plan.config.seq_len} tokens."
        )
    if limits.seq_len is not None:
        lines.append(
            f"The longest sequences at rank {limits.at_rank}: {limits.seq_len} tokens, batch {plan.config.batch_size}."
        )
    if plan.savings:
        lines.append(f"What to change first, at rank {plan.rows[0].rank}:")
        lines += [
            f"  {saving.change} saves {plain_bytes(saving.saves)}{', and then it fits' if saving.fits else ''}"
            for saving in plan.savings
        ]
    return lines
