"""Tables of a GPU run, its goals and what bounds each figure, made from its JSON alone."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.on_gpu import goals
from benchmarks.on_gpu.lengths import SOURCE

Rows = list[dict[str, Any]]

INTRODUCTION = f"""# Language models on a GPU

`python benchmarks/gpu.py --docs` writes this page from `benchmarks/results/gpu-*.json`; no figure
in it is written by hand.

Models are random, of published sizes. The lengths of examples are spread as in the
{SOURCE}: "real" lengths are drawn from that distribution and cut at
the length named, "equal" ones have it. Useful work is what losses and gradients need: frozen layers
forward and the gradient of their inputs, adapters, causal attention, logits of learnt tokens.
Padding and recomputation do not count. The peak is that of large matrix products in the same run.
"""
NOTHING_YET = "No GPU has run it yet, so there are no figures.\n"


def write_page(results: Path, page: Path) -> None:
    """Write the page of the newest results; without results it says so in one sentence."""
    files = sorted(results.glob("gpu-*.json"), key=_date_of)
    body = NOTHING_YET
    if files:
        body = f"Results: `benchmarks/results/{files[-1].name}`.\n\n{as_markdown(_read(files[-1]))}"
    page.write_text(f"{INTRODUCTION}\n{body}")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _date_of(path: Path) -> str:
    return str(_read(path)["machine"]["date"])


def as_markdown(results: dict[str, Any]) -> str:
    """Return all tables of a run as Markdown."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine['card']}, driver {machine['driver']}, {versions}; {machine['date']}, "
        f"commit {machine['commit']}.",
        "",
    ]
    sections: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
        "parity": _parity,
        "speed": _speed,
        "memory": _memory,
        "growth": _growth,
        "sweep": _sweep,
    }
    lines += ["## Goals", *_table(("goal", "measured", "met"), goals.rows(results["parts"])), ""]
    for name, section in sections.items():
        part = results["parts"].get(name)
        if part is None:
            continue
        lines.append(f"## {name.capitalize()}")
        if "failed" in part:
            lines += [f"This part failed: {part['failed']}", ""]
            continue
        lines += [*section(part), ""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _gib(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.2f}"


def _parity(part: dict[str, Any]) -> Iterator[str]:
    rows = [
        (name, f"{difference:.2e}", f"{part['bound']:.2e}", "rounding")
        for name, difference in part["largest_difference"].items()
    ]
    yield f"Largest difference of a step's loss from the reference, {part['steps']} steps."
    yield ""
    yield from _table(("engine", "share of the loss", "bound", "bounded by"), rows)


def bounded_by(row: dict[str, Any]) -> str:
    """Return what bounds a row's speed, as far as the run can tell."""
    reasons = []
    if row["padding"] >= 0.1:
        reasons.append(f"padding: {row['padding']:.0%} of what it computes")
    kernels = row.get("kernels")
    if kernels and kernels["busy"] < 0.85:
        reasons.append(f"launches: kernels run {kernels['busy']:.0%} of the time")
    elif kernels:
        shares = f"{kernels['gemm']:.0%} products, {kernels['attention']:.0%} attention"
        reasons.append(f"kernels, of which {shares}")
    attention = row["work_shares"]["attention"]
    if attention >= 0.1:
        reasons.append(f"attention: {attention:.0%} of the useful work")
    return "; ".join(reasons) or "not told by this run"


def _speed(part: dict[str, Any]) -> Iterator[str]:
    peak = part["peak_flop_per_second"]
    yield f"Peak of matrix products: {peak / 1e12:.3g} TFLOP/s; memory copies: "
    yield f"{part['bytes_per_second'] / 1e12:.3g} TB/s. Rank {part['rank']}, all linear layers."
    yield ""
    rows = []
    for row in part["rows"]:
        start = (row["size"], str(row["length"]), row["lengths"], row["way"])
        if "failed" in row:
            rows.append((*start, row["failed"], *[""] * 6))
            continue
        rival = goals.tutorial_row(part["rows"], row)
        gain = row["tokens_per_second"] / rival["tokens_per_second"] if rival else None
        figures = (
            f"{row['tokens_per_second']:,.0f}",
            f"{row['seconds_per_trial']:.2f}",
            f"{row['flop_per_second'] / 1e12:.3g}",
            f"{row['flop_per_second'] / peak:.0%}",
            "" if gain is None else f"{gain:.2f} x",
            _gib(row["peak_bytes"]),
            bounded_by(row),
        )
        rows.append((*start, *figures))
    header = (
        "model", "tokens", "lengths", "way to train", "tokens/s", "s per trial",
        "useful TFLOP/s", "of the peak", "against PEFT + Trainer", "peak, GiB", "bounded by",
    )  # fmt: skip
    yield from _table(header, rows)
    for sentence in part["not_run"]:
        yield f"\nNot run: {sentence}."


def _memory(part: dict[str, Any]) -> Iterator[str]:
    rows = []
    for row in part["rows"]:
        start = (
            row["size"],
            row["engine"],
            "LoRA" if row["quantization"] == "none" else f"QLoRA, {row['quantization']}",
            "on" if row["checkpointing"] else "off",
            f"{row['batch']} x {row['length']}",
        )
        planned, measured = row.get("planned"), row.get("measured")
        error = f"{row['error']:+.1%}" if "error" in row else row.get("failed", "not measured")
        rows.append((*start, _gib(planned), _gib(measured), error))
    header = (
        "model", "engine", "base", "checkpointing", "batch", "planned, GiB", "measured, GiB",
        "difference",
    )  # fmt: skip
    yield from _table(header, rows)
    errors = [abs(row["error"]) for row in part["rows"] if "error" in row]
    if errors:
        yield f"\nMean {fmean(errors):.1%}, largest {max(errors):.1%}. Bounded by the planner."
    if part["not_run"]:
        yield f"\nNot run for want of time: {part['not_run']}."


def _growth(part: dict[str, Any]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    first: dict[str, float] = {}
    for row in part["rows"]:
        start = (row["what"], str(row["trials"]), str(row["length"]), str(row["rank"]))
        if "failed" in row:
            rows.append((*start, row["failed"], "", "", ""))
            continue
        cost = 1 / row["tokens_per_second"]
        ratio = cost / first.setdefault(row["what"], cost)
        step = f"{row['seconds_per_step_and_trial'] * 1e3:.1f}"
        rows.append((*start, step, f"{ratio:.2f}", _gib(row["peak_bytes"])))
    header = (
        "grows", "trials", "tokens", "rank", "ms per step and trial", "cost of a token",
        "peak, GiB",
    )  # fmt: skip
    yield "The cost of a token is that of the first row of its kind times the number given."
    yield ""
    yield from _table(header, rows)
    if part["not_run"]:
        yield f"\nNot run for want of time: {part['not_run']}."


def _sweep(part: dict[str, Any]) -> Iterator[str]:
    other = part["wall_seconds"] - part["training_seconds"] - part["scoring_seconds"]
    rows = [
        ("from the command to the decision", f"{part['wall_seconds']:.1f}"),
        ("training", f"{part['training_seconds']:.1f}"),
        ("scoring", f"{part['scoring_seconds']:.1f}"),
        ("imports, loading, measuring, report", f"{other:.1f}"),
    ]
    ranks = ", ".join(map(str, part["ranks"]))
    packs = " and ".join(map(str, part["pack_sizes"]))
    yield f"{part['model']}: ranks {ranks}, {part['seeds']} seeds, {part['examples']} examples of"
    yield f"{part['tokens']:,} tokens; {part['trials']} trials in packs of {packs}."
    yield ""
    yield from _table(("part", "s"), rows)
    longest = max(rows[1:], key=lambda row: float(row[1]))[0]
    yield f"\nBounded by: {longest}."
