"""Checks of single values, each with one clear line when it fails."""

import math

from rankwise.errors import RequestError


def check_whole(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """Return ``value`` as an ``int``; text such as ``"8"`` and floats such as ``8.0`` are whole numbers too.

    Raises:
        RequestError: it is not a whole number, or outside the bounds.
    """
    allowed = f"a whole number, at least {at_least}" + (f" and at most {at_most}" if at_most is not None else "")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not number.is_integer():
        raise RequestError(f"{name} {value!r}: allowed is {allowed}")
    if number < at_least or (at_most is not None and number > at_most):
        raise RequestError(f"{name} {value}: allowed is {allowed}")
    return int(number)


def check_number(name: str, value: object, *, above: float, below: float | None = None) -> float:
    """Return ``value`` as a finite ``float`` strictly inside the bounds.

    Raises:
        RequestError: it is not a number, not finite, or outside the bounds.
    """
    allowed = f"a number above {above:g}" + (f" and below {below:g}" if below is not None else "")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if (
        isinstance(value, bool)
        or not math.isfinite(number)
        or number <= above
        or (below is not None and number >= below)
    ):
        raise RequestError(f"{name} {value!r}: allowed is {allowed}")
    return number
