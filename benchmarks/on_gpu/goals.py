"""The goals of training language models on a GPU, and whether a run met them."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

TUTORIAL = "PEFT + Trainer"
Rows = list[dict[str, Any]]


def tutorial_row(rows: Rows, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of PEFT + Trainer on the same model, length and kind of lengths."""
    for other in rows:
        same = all(other[name] == row[name] for name in ("size", "length", "lengths"))
        if same and other["way"] == TUTORIAL and "failed" not in other:
            return other
    return None


def rows(parts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return each goal, what was measured and whether it was met; "not measured" without figures.

    Args:
        parts: the parts of a run, by name; those that failed or were not run count as not measured.
    """
    usable = {name: part for name, part in parts.items() if "failed" not in part}
    found = [*_parity(usable), *_speed(usable), *_memory(usable), *_sweep(usable)]
    lines = []
    for goal, measured, met in found:
        lines.append((goal, measured or "not measured", {True: "yes", False: "no", None: ""}[met]))
    return lines


Goal = tuple[str, str | None, bool | None]


def _parity(parts: dict[str, Any]) -> Iterator[Goal]:
    goal = "fused and reference losses agree within rounding over 30 steps"
    part = parts.get("parity")
    if part is None:
        yield goal, None, None
        return
    worst = max(part["largest_difference"].values())
    yield goal, f"{worst:.1e} of {part['bound']:.1e}", part["held"]


def _speed(parts: dict[str, Any]) -> Iterator[Goal]:
    speed = parts.get("speed", {"rows": [], "peak_flop_per_second": 1.0})
    good: Rows = [row for row in speed["rows"] if "failed" not in row]
    fused = [row for row in good if row["way"].startswith("fused")]
    long = [row for row in fused if row["size"] == "8B" and row["length"] >= 1024]
    shares = [row["flop_per_second"] / speed["peak_flop_per_second"] for row in long]
    best = max(shares, default=None)
    goal = "8B at 1,024 tokens and up: 60 % of the peak as useful work"
    yield goal, None if best is None else f"{best:.0%}", None if best is None else best >= 0.6
    for goal, size, kind, way, least in (
        ("8B, equal lengths: 1.5 x PEFT + Trainer", "8B", "equal", "fused", 1.5),
        ("8B, real lengths: 2.5 x", "8B", "real", "fused", 2.5),
        ("1B, real lengths: 3 x", "1B", "real", "fused", 3.0),
        ("135M in packs of 8: 8 x", "135M", "real", "fused, pack of 8", 8.0),
    ):
        gains = []
        for row in fused:
            rival = tutorial_row(good, row)
            if rival and (row["size"], row["lengths"]) == (size, kind) and way in row["way"]:
                gains.append(row["tokens_per_second"] / rival["tokens_per_second"])
        gain = max(gains, default=None)
        yield (
            goal,
            None if gain is None else f"{gain:.2f} x",
            None if gain is None else gain >= least,
        )
    held = [
        row["resident_bytes"] / row["base_bytes"]
        for row in fused
        if row["size"] == "1B" and row["way"] == "fused, pack of 8" and row["resident_bytes"]
    ]
    goal = "a pack of 8 at 1B: 1.3 base memories plus its activations"
    yield goal, f"{max(held):.2f}" if held else None, max(held) <= 1.3 if held else None


def _memory(parts: dict[str, Any]) -> Iterator[Goal]:
    rows: Rows = parts.get("memory", {"rows": []})["rows"]
    errors = [abs(row["error"]) for row in rows if "error" in row]
    goal = "planned memory: 2 % on average, 5 % at worst"
    if not errors:
        yield goal, None, None
        return
    mean, worst = fmean(errors), max(errors)
    yield goal, f"{mean:.1%}, {worst:.1%}", mean <= 0.02 and worst <= 0.05


def _sweep(parts: dict[str, Any]) -> Iterator[Goal]:
    goal = "the 1B sweep in less time than three trials of PEFT + Trainer"
    part = parts.get("sweep")
    rivals = [
        row
        for row in parts.get("speed", {"rows": []})["rows"]
        if row["size"] == "1B" and row["lengths"] == "real" and row["way"] == TUTORIAL
    ]
    if part is None or not rivals or "failed" in rivals[0]:
        yield goal, None, None
        return
    three = 3 * part["train_tokens"] / rivals[0]["tokens_per_second"]
    wall = part["wall_seconds"]
    yield goal, f"{wall:.1f} s of {three:.1f} s", wall < three
