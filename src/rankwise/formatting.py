"""Numbers as text for people, and values as JSON has them."""

import math
from typing import Any

Interval = tuple[float, float]

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
UNLIMITED = (-math.inf, math.inf)


def plain_bytes(count: float) -> str:
    """Return a number of bytes in the largest binary unit that leaves at least 1."""
    size, unit = float(count), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"


def seconds(value: float) -> str:
    """Return a time in seconds, or in minutes from two minutes on."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def signed(value: float) -> str:
    """Return a difference of losses with its sign."""
    return f"{value:+.4f}"


def share(value: float, percent: bool) -> str:
    """Return a task score, in percent if it is a share."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4f}"


def sure(reached: float, asked: float) -> str:
    """Return a confidence in percent, rounded down, so that it does not seem to reach more.

    Near the confidence that was asked for, and above it, it has one digit more.
    """
    digits = 0 if reached < asked - 0.01 else 1
    scale = 10.0**digits
    return f"{math.floor(100 * reached * scale + 1e-9) / scale:.{digits}f} %"


def how_sure(reached: float | None, asked: float) -> str:
    """Return the confidence that a rank reaches and the one asked for: ``83 % sure, 95 % asked``.

    The one reached is None where the noise is not known, and 0 where it cannot be estimated.
    """
    known = f"{sure(reached, asked)} sure" if reached else "how sure is not known"
    return f"{known}, {100 * asked:.4g} % asked"


def clip(bounds: Interval, possible: Interval) -> Interval:
    """Return the possible part of an interval, which may reach beyond what its metric can be."""
    return max(possible[0], bounds[0]), min(possible[1], bounds[1])


def interval(
    bounds: Interval | None,
    *,
    percent: bool = False,
    sign: bool = False,
    possible: Interval = UNLIMITED,
) -> str:
    """Return the possible part of an interval in brackets; an empty text without an interval."""
    if bounds is None:
        return ""
    low, high = clip(bounds, possible)
    if percent:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:+.3f}, {high:+.3f}]" if sign else f"[{low:.3f}, {high:.3f}]"


def figure(
    value: float | None,
    bounds: Interval | None = None,
    *,
    percent: bool = False,
    sign: bool = False,
    possible: Interval = UNLIMITED,
) -> str:
    """Return a figure with the half-width of its interval, or an empty text without a figure.

    Where a part of the interval is impossible, the interval itself stands in place of the width.
    """
    if value is None:
        return ""
    number = f"{100 * value:.1f}" if percent else f"{value:{'+' if sign else ''}.4f}"
    unit = " %" if percent else ""
    if bounds is None:
        return number + unit
    if clip(bounds, possible) != tuple(bounds):
        return f"{number}{unit} {interval(bounds, percent=percent, sign=sign, possible=possible)}"
    half_width = (bounds[1] - bounds[0]) / 2
    if percent:
        return f"{number} ± {100 * half_width:.1f}{unit}"
    return f"{number} ± {half_width:.3f}"


def exact(value: float) -> str:
    """Return a number's shortest usual text that no other number has, as in ``0.001``, ``5e-05``.

    Six digits are enough for most; others have as many as tell them from their neighbours.
    """
    text = f"{value:g}"
    return text if float(text) == value else repr(float(value))


def json_value(value: Any) -> Any:
    """Return a value with null for the numbers that JSON lacks, NaN and infinity."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
