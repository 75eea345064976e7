"""A plan on screen."""

from rich.console import Console
from rich.table import Table

from rankwise.plan import Plan
from rankwise.report.words import plain_bytes

BASES = {"int8": "int8", "nf4": "NF4", "nf4-dq": "NF4, double quantisation"}


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print parameters, memory, the comparison of quantisations and what fits."""
    console = console or Console()
    if console.width < 110 and not console.is_terminal:
        console = Console(file=console.file, width=130)
    console.print(_memory_table(plan))
    console.print(_quantization_table(plan))
    for line in (*_limits(plan), *(f"Note: {note}" for note in plan.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _memory_table(plan: Plan) -> Table:
    config = plan.config
    base = BASES.get(config.quantization, config.precision)
    if config.quantization != "none":
        base += f" (computing in {config.precision})"
    table = Table(
        title=f"{config.model}: {plan.task_type}, {base}, batch {config.batch_size} x {config.seq_len}, "
        f"{config.optimizer}{', checkpointing' if config.gradient_checkpointing else ''}; {plan.device.name}",
        title_justify="left",
    )
    names = ["rank", "trainable", "percent", "file", "weights", "adapter", "gradients", "optimizer"]
    names += ["activations", "logits", "peak", "evaluation"]
    for name in names + (["fits"] if plan.room is not None else []):
        table.add_column(name, justify="right", overflow="fold")
    for row in plan.rows:
        memory = row.memory
        sizes = (memory.weights, memory.adapter, memory.gradients, memory.optimizer)
        sizes += (memory.activations, memory.logits, memory.peak_allocated, memory.peak_eval)
        cells = [str(row.rank), f"{row.params.trainable:,}", f"{row.params.percent:.3f} %"]
        cells += [plain_bytes(size) for size in (row.params.adapter_bytes, *sizes)]
        if row.margin is not None:
            cells.append(f"{'yes' if row.fits else 'no'}, {plain_bytes(abs(row.margin))} {'left' if row.fits else 'short'}")
        table.add_row(*cells, style="red" if row.fits is False else None)
    return table


def _quantization_table(plan: Plan) -> Table:
    """The same ranks over the same base in fewer bits, and how little of it all is the rank's."""
    table = Table(title="Training peak by base, and what of it the rank takes", title_justify="left")
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
    lines = [
        f"{plan.config.device or 'Memory'}: {plain_bytes(plan.room)}, of which the driver's context takes about "
        f"{plain_bytes(context)}."
    ]
    if limits.rank is None:
        lines.append("No rank fits.")
    else:
        cap = ", the highest that its layers allow" if limits.rank == limits.highest_rank else ""
        lines.append(f"The largest rank that fits: {limits.rank}{cap}.")
    if limits.batch_size is not None:
        lines.append(f"The largest batch at rank {limits.at_rank}: {limits.batch_size} x {plan.config.seq_len} tokens.")
    if limits.seq_len is not None:
        lines.append(
            f"The longest sequences at rank {limits.at_rank}: {limits.seq_len} tokens, "
            f"batch {plan.config.batch_size}."
        )
    if plan.savings:
        lines.append(f"What to change first, at rank {plan.rows[0].rank}:")
        lines += [
            f"  {saving.change} saves {plain_bytes(saving.saves)}{', and then it fits' if saving.fits else ''}"
            for saving in plan.savings
        ]
    return lines
