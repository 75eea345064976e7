"""The result of ``rankwise shrink`` in the terminal."""

from typing import Any

from rich.console import Console

from rankwise.decide.metrics import is_share
from rankwise.formatting import plain_bytes, seconds, share, signed
from rankwise.report.style import new_table, print_lines, wide_console

OUTCOMES = {
    "itself": "",
    "within": "holds",
    "worse": "costs more",
    "open": "not shown",
    "not asked": "",
}


def print_shrunk(document: dict[str, Any], console: Console | None = None) -> None:
    """Print the answer for each adapter, its table, and what it cost.

    Args:
        document: content of ``decision.json``.
        console: console to print to; stdout if None.
    """
    console = wide_console(console)
    several = len(document["adapters"]) > 1
    for adapter in document["adapters"]:
        if several:
            print_lines(console, f"Adapter: {adapter['adapter']}")
        print_lines(console, adapter["answer"], wrap=True, style="bold")
        print_lines(console, adapter["evidence"], wrap=True)
        _print_rows(document, adapter["adapter"], console)
        # What concerns the data is the same for all adapters.
        caveats = adapter["caveats"]
        is_last = adapter is document["adapters"][-1]
        shown = caveats if is_last else [each for each in caveats if each.startswith("About")]
        print_lines(console, *(f"Note: {caveat}" for caveat in shown), wrap=True)
    if several and document["rank"] is not None:
        print_lines(
            console,
            f"Smallest rank that holds for all adapters: {document['rank']}.",
            style="bold",
        )
    print_lines(console, *document["serving"], wrap=True)
    print_lines(console, _cost(document))


def _print_rows(document: dict[str, Any], adapter: str, console: Console) -> None:
    unit = document["unit"].partition(" per ")[0]
    table = new_table(f"Truncations, margin {document['margin']:.3g} {unit}")
    headings = ("rank", "held-out\nloss", document["score"], "difference\nin loss", "between")
    for name in (*headings, "examples", "parameters", "size", "energy\nkept", "outcome"):
        table.add_column(name, justify="right", overflow="fold")
    percent = is_share(document["score"])
    for row in document["table"]:
        if row["adapter"] != adapter:
            continue
        judged = row["examples"] > 0 and row["outcome"] != "itself" and row["rank"]
        difference = row["difference"]
        bounds = ""
        if judged and row["lower"] is not None:
            bounds = f"{signed(row['lower'])} {signed(row['upper'])}"
        is_zero = row["rank"] == 0
        table.add_row(
            rank_name(row),
            "" if row["loss"] is None else f"{row['loss']:.4f}",
            "" if row["score"] is None else share(row["score"], percent),
            signed(difference) if difference is not None and row["outcome"] != "itself" else "",
            bounds,
            f"{row['examples']:,}" if row["outcome"] != "itself" else "",
            "" if is_zero else f"{row['params']:,}",
            "" if is_zero else plain_bytes(row["bytes"]),
            f"{100 * row['energy']:.1f} %" if row["energy"] else "",
            OUTCOMES[row["outcome"]],
            style="bold green" if is_chosen(document, row) else None,
        )
    console.print(table)


def rank_name(row: dict[str, Any]) -> str:
    """Return the name of a truncation in tables and figures."""
    if row["outcome"] == "itself":
        return f"{row['rank']} (itself)"
    if row["rank"] == 0:
        return "no update"
    if row["healed"]:
        return f"{row['rank']} healed"
    return f"{row['rank']} per layer" if row["per_layer"] else str(row["rank"])


def is_chosen(document: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row is the smallest rank that holds for its adapter."""
    own = next(each for each in document["adapters"] if each["adapter"] == row["adapter"])
    is_healed = own["healing"] is not None and own["healing"]["taken"]
    return (row["rank"], row["per_layer"], row["healed"]) == (own["rank"], False, is_healed)


def _cost(document: dict[str, Any]) -> str:
    """Return what scoring took, in a sentence."""
    scored = [each["examples"] for each in document["adapters"]]
    most = document["held_out_examples"]
    members = len(document["table"])
    whole = members * most
    passes = document["forward_passes"]
    return (
        f"Cost: {passes:,} forward passes, {100 * passes / whole:.0f} % of those that scoring all "
        f"{members} models on all {most:,} examples takes; {max(scored):,} examples were looked "
        f"at; {seconds(document['seconds'])}; {training_cost(document)}."
    )


def training_cost(document: dict[str, Any]) -> str:
    """Return how long healing took, if anything was trained."""
    trained = [each["healing"]["seconds"] for each in document["adapters"] if each["healing"]]
    return f"training {seconds(sum(trained))}" if trained else "no training"
