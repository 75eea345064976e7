"""Checks of single values; each refuses a bad value in one line that says what is allowed."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rankwise.errors import RequestError, not_allowed, shown

LARGEST = 2**53  # a float holds every whole number up to it
LEAST_BYTES = 100_000  # a smaller bare number means gigabytes or megabytes
MATCHING_SECONDS = 5  # of a regular expression in all names, which usually takes milliseconds
REPEAT = re.compile(r"(?<!\\)[*+{]")
NESTED = re.compile(r"\)[*+{]")
MATCH_ALL = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
for number, pattern in enumerate(patterns):
    print(number, flush=True)
    for text in texts:
        try:
            re.search(pattern, text)
        except re.error:
            break
"""


def check_whole(name: str, value: object, *, at_least: int, at_most: int = LARGEST) -> int:
    """Return a whole number as an ``int``; ``"8"`` and ``8.0`` count too.

    Raises:
        RequestError: it is not a whole number, or outside the bounds.
    """
    number = _number(value)
    if number.is_integer() and at_least <= number <= at_most:
        return int(number)
    allowed = f"a whole number, at least {at_least}"
    if at_most != LARGEST or number > at_most:
        allowed += f" and at most {at_most}"
    # The text "0" is shown as the number, the text "x" as text.
    given = shown(value).strip("'") if number.is_integer() else shown(value)
    raise RequestError(f"{name} {given}: allowed is {allowed}")


def check_number(
    name: str, value: object, *, above: float, below: float | None = None, or_equal: bool = False
) -> float:
    """Return a number, or text such as ``"0.5"``, as a finite ``float`` between the bounds.

    ``or_equal`` allows the lower bound too.

    Raises:
        RequestError: it is not a number, not finite, or outside the bounds.
    """
    number = _number(value)
    if above < number < (math.inf if below is None else below):  # false for NaN
        return number
    if or_equal and number == above:
        return number
    lower = f"of at least {above:g}" if or_equal else f"above {above:g}"
    upper = "" if below is None else f" and below {below:g}"
    raise not_allowed(name, value, f"a number {lower}{upper}")


def check_text(name: str, value: object) -> str:
    """Return ``value`` if it is text that is not blank.

    Raises:
        RequestError: it is something else; a number does not count as text.
    """
    if isinstance(value, str) and value.strip():
        return check_encoding(name, value)
    short = isinstance(value, int) and abs(value) <= LARGEST
    hint = f"; write {value!r} in quotes" if short else ""
    raise not_allowed(name, value, f"a text that is not blank{hint}")


def check_path(name: str, value: object) -> Path:
    """Return text or a path as a `Path`.

    Raises:
        RequestError: it is neither, or it is blank.
    """
    if isinstance(value, os.PathLike):
        return Path(check_encoding(name, os.fsdecode(value)))
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return Path(check_encoding(name, value))
    raise not_allowed(name, value, "the path of a file or directory, as a text")


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is true or false.

    Raises:
        RequestError: it is something else; texts and numbers do not count as truth values.
    """
    if isinstance(value, bool):
        return value
    raise not_allowed(name, value, "true or false")


def parse_bytes(name: str, value: object) -> int:
    """Return a memory size in bytes: ``"24GB"`` is 24e9, ``"24GiB"`` 24 * 2^30; no unit is bytes.

    Raises:
        RequestError: it is not a size, or below 100 kB: a bare 24 must mean 24GB.
    """
    text = value if isinstance(value, str) else shown(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text.lower())
    power = "kmgt".index(match[2]) + 1 if match and match[2] else 0
    size = float(match[1]) * (1024 if match[3] else 1000) ** power if match else math.nan
    if LEAST_BYTES <= size < math.inf:
        return round(size)
    hint = ""
    if match and match[1] == text.strip() and 0 < size < LEAST_BYTES:
        unit = "GB" if size < 1000 else "MB"
        hint = f" (a number alone counts bytes: did you mean {size:g}{unit}?)"
    raise not_allowed(name, value, f"a size such as 24GB or 16GiB, 100kB at least{hint}")


def check_matching_ends(name: str, patterns: Iterable[str], texts: Sequence[str]) -> None:
    """Refuse a regular expression that takes forever to match (catastrophic backtracking).

    Where repeats are nested or many, a child process tries it first: nothing stops Python's own
    matching.

    Raises:
        RequestError: a pattern does not end within MATCHING_SECONDS.
    """
    doubtful = [each for each in patterns if NESTED.search(each) or len(REPEAT.findall(each)) > 4]
    if not doubtful:
        return
    command = [sys.executable, "-I", "-S", "-c", MATCH_ALL]
    given = json.dumps([doubtful, texts]).encode()
    try:
        subprocess.run(command, input=given, capture_output=True, timeout=MATCHING_SECONDS)
    except subprocess.TimeoutExpired as error:
        pattern = doubtful[len((error.stdout or b"").split()) - 1]
        raise RequestError(
            f"{name} {shown(pattern)} takes forever to match; avoid repeats inside repeats, as in "
            "(a+)+"
        ) from None


def check_encoding(name: str, value: str) -> str:
    """Refuse a name whose bytes on disk are no UTF-8, which no file or terminal could show."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestError(f"{name} {ascii(value)[:80]} is not UTF-8; rename it")
    return value


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
