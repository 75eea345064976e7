"""What a sweep would run and take, as a table and sentences."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rankwise.formatting import plain_bytes, seconds

if TYPE_CHECKING:
    from rankwise.sweeps.dry_run import DryRun


def print_dry_run(planned: "DryRun", console: Console | None = None) -> None:
    """Print each rank's memory and time, and what the whole sweep takes."""
    console = console or Console()
    table = Table(title=f"What the sweep would run ({planned.strategy})", title_justify="left")
    for name in (
        "rank",
        "memory",
        "training one trial",
        "scoring it",
        "learning rates first tried",
    ):
        table.add_column(name, justify="right")
    for row in planned.ranks:
        table.add_row(
            str(row.rank),
            "unknown" if row.memory_bytes is None else plain_bytes(row.memory_bytes),
            seconds(row.train_seconds),
            seconds(row.eval_seconds),
            ", ".join(f"{rate:g}" for rate in row.first_rates) or "-",
        )
    console.print(table)
    left = planned.expected - planned.complete
    examples, tokens = planned.batch
    lines = [
        f"Trials: about {planned.expected}, of which {planned.complete} are complete. Rates and ranks that come later "
        "depend on what these give.",
        f"Time: about {seconds(planned.seconds)} for the {left} that are left, one after another, on this machine. "
        f"Timed over {planned.timed_steps} steps each at ranks {planned.ranks[0].rank} and {planned.ranks[-1].rank}, "
        "and stretched to all tokens.",
    ]
    if planned.room_bytes is not None:
        lines.append(
            f"Memory: planned for batches of {examples} x {tokens} tokens; "
            f"{plain_bytes(planned.room_bytes)} may be used"
            + (f", by up to {planned.at_once} trials at once." if planned.at_once > 1 else ".")
        )
    for line in [*lines, "Nothing was written."]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
