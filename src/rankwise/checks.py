"""Checks of single values, each with one clear line when it fails."""

import math
import os
import re
from pathlib import Path

from rankwise.errors import RequestError, shown

LARGEST = 2**53  # a float holds every whole number up to it
LEAST_BYTES = 100_000  # a smaller bare number means gigabytes or megabytes


def check_whole(name: str, value: object, *, at_least: int, at_most: int = LARGEST) -> int:
    """Return ``value`` as an ``int``; text such as ``"8"`` and floats such as ``8.0`` are whole numbers too.

    Raises:
        RequestError: it is not a whole number, or outside the bounds.
    """
    number = _number(value)
    if not number.is_integer() or not at_least <= number <= at_most:
        # The upper bound is named only where it matters.
        bound = f" and at most {at_most}" if at_most != LARGEST or number > at_most else ""
        # The text "0" is shown as the number, the text "x" as text.
        given = shown(value).strip("'") if number.is_integer() else shown(value)
        raise RequestError(f"{name} {given}: allowed is a whole number, at least {at_least}{bound}")
    return int(number)


def check_number(name: str, value: object, *, above: float, below: float | None = None) -> float:
    """Return ``value`` as a finite ``float`` strictly inside the bounds.

    Raises:
        RequestError: it is not a number, not finite, or outside the bounds.
    """
    allowed = f"a number above {above:g}" + (f" and below {below:g}" if below is not None else "")
    number = _number(value)
    if not math.isfinite(number) or number <= above or (below is not None and number >= below):
        raise RequestError(f"{name} {shown(value)}: allowed is {allowed}")
    return number


def check_text(name: str, value: object) -> str:
    """Return ``value`` if it is text that is not blank.

    Raises:
        RequestError: it is something else; a number does not count as text.
    """
    if not isinstance(value, str) or not value.strip():
        hint = (
            f"; write {value!r} in quotes"
            if isinstance(value, int) and abs(value) <= LARGEST
            else ""
        )
        raise RequestError(f"{name} {shown(value)}: allowed is a text that is not blank{hint}")
    return value


def check_path(name: str, value: object) -> Path:
    """Return ``value`` as a path.

    Raises:
        RequestError: it is not a text or a path, or it is blank.
    """
    if isinstance(value, os.PathLike):
        return Path(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise RequestError(
            f"{name} {shown(value)}: allowed is the path of a file or directory, as a text"
        )
    return Path(value)


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is true or false.

    Raises:
        RequestError: it is something else; texts and numbers do not count as truth values.
    """
    if isinstance(value, bool):
        return value
    raise RequestError(f"{name} {shown(value)}: allowed is true or false")


def parse_bytes(name: str, value: object) -> int:
    """Return a memory size in bytes: ``"24GB"`` is 24e9, ``"24GiB"`` is 24 * 2^30, a bare number counts bytes.

    Raises:
        RequestError: the value is not a size, or is below 100 kB, where no model trains: a bare 24 must mean 24GB.
    """
    match = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*",
        (value if isinstance(value, str) else shown(value)).lower(),
    )
    power = "kmgt".index(match[2]) + 1 if match and match[2] else 0
    size = float(match[1]) * (1024 if match[3] else 1000) ** power if match else math.nan
    if not LEAST_BYTES <= size < math.inf:
        unit = "GB" if size < 1000 else "MB"
        alone = match and match[1] == match[0].strip() and 0 < size < LEAST_BYTES
        hint = f" (a number alone counts bytes: did you mean {size:g}{unit}?)" if alone else ""
        raise RequestError(
            f"{name} {shown(value)}: allowed is a size such as 24GB or 16GiB, 100kB at least{hint}"
        )
    return round(size)


def _number(value: object) -> float:
    """Return a float: NaN for a value that is not a number, infinity for one too large."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    except OverflowError:
        return math.inf
