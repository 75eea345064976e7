"""The two ways a command can fail, each reported as one line."""

import difflib
from collections.abc import Iterable

LONGEST_SHOWN = 80  # characters


class RankwiseError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code = 1


class RequestError(RankwiseError, ValueError):
    """The request was wrong (exit code 2).

    The message is one line that names the value, what is allowed and the nearest fix.

    Attributes:
        setting: name of the setting at fault; None where it is not one setting alone.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


def not_allowed(name: str, value: object, allowed: str) -> RequestError:
    """Return the refusal of a value, to be raised: ``margin -1: allowed is a number above 0``."""
    return RequestError(f"{name} {shown(value)}: allowed is {allowed}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def shown(value: object) -> str:
    """Return a value as Python writes it, shortened so that the line stays readable."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        return f"{type(value).__name__} too long to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def some(values: Iterable[object], limit: int = 5) -> str:
    """List the first few values, so that one line stays one line."""
    items = [str(value) for value in values]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")
