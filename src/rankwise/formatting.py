"""Numbers as people read them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.decide import Interval

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
ANYTHING = (-math.inf, math.inf)


def plain_bytes(count: float) -> str:
    """Write bytes in the largest binary unit that leaves at least 1."""
    size, unit = float(count), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"


def seconds(value: float) -> str:
    """Write a time in seconds, or in minutes from two on."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def signed(value: float) -> str:
    """Write a difference of losses with its sign."""
    return f"{value:+.4f}"


def limits(metric: str, means: Iterable[float | None]) -> "Interval":
    """Return the least and the most that a metric can be, as far as its name tells and its means do not refute it.

    Args:
        metric: its name; ``"loss"`` is a log-loss or a squared error.
        means: all that are known of it, which tell whether a share is in percent.
    """
    from rankwise.decide.metrics import (  # loads pandas, which plans do without
        LOWER,
        NEGATIVE,
        PERCENT,
        snake,
    )

    known, words = [mean for mean in means if mean is not None], set(snake(metric).split("_"))
    least, most = ANYTHING
    if words & NEGATIVE:
        most = 0.0
    elif words & PERCENT:
        least, most = 0.0, 1.0 if all(mean <= 1 for mean in known) else 100.0
    elif metric == "loss" or words & LOWER:
        least = 0.0
    return (least, most) if all(least <= mean <= most for mean in known) else ANYTHING


def of_differences(within: "Interval") -> "Interval":
    """Return the least and the most that the difference of two values can be."""
    apart = within[1] - within[0]
    return -apart, apart


def clip(bounds: "Interval", within: "Interval") -> "Interval":
    """Return what of an interval is possible: the bounds are a mean's and its error's, which know of no limits."""
    return max(within[0], bounds[0]), min(within[1], bounds[1])


def figure(
    value: float | None,
    bounds: "Interval | None" = None,
    *,
    percent: bool = False,
    sign: bool = False,
    within: "Interval" = ANYTHING,
) -> str:
    """Write a figure with the half-width of its interval, or with the interval where a part of that is impossible.

    Empty where there is no figure.
    """
    if value is None:
        return ""
    shown = f"{100 * value:.1f}" if percent else f"{value:{'+' if sign else ''}.4f}"
    unit = " %" if percent else ""
    if bounds is None:
        return shown + unit
    if clip(bounds, within) != tuple(bounds):
        return f"{shown}{unit} {interval(bounds, percent=percent, sign=sign, within=within)}"
    half = (bounds[1] - bounds[0]) / 2
    return f"{shown} ± {100 * half:.1f}{unit}" if percent else f"{shown} ± {half:.3f}"


def is_share(score: str) -> bool:
    """Whether a task score is a share, which people read in percent."""
    return score.endswith("accuracy")


def share(value: float, percent: bool) -> str:
    """Write a task score, in percent if it is a share."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4f}"


def interval(
    bounds: "Interval | None",
    *,
    percent: bool = False,
    sign: bool = False,
    within: "Interval" = ANYTHING,
) -> str:
    """Write what of an interval is possible in brackets; empty where there is none."""
    if bounds is None:
        return ""
    low, high = clip(bounds, within)
    if percent:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:+.3f}, {high:+.3f}]" if sign else f"[{low:.3f}, {high:.3f}]"


def common_start(names: Sequence[str]) -> str:
    """Return what dotted names have in common before their last parts, with the dot: ``"model.layers."``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


def training_time(table: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what a decision's training times are where trials trained together; None where each trained alone."""
    packed = [row for row in table if (row.get("pack_size") or 1) > 1]
    if not packed:
        return None
    return (
        f"The training time is what one trial takes alone, from steps taken alone. Up to "
        f"{max(row['pack_size'] for row in packed)} trials trained at once; the longest of these packs took "
        f"{seconds(max(row['pack_seconds'] for row in packed))}."
    )
