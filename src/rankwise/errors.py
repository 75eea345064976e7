"""The two ways a command can fail, each reported as one line."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from rankwise.escaping import message as as_message

LONGEST_SHOWN = 80  # characters
LONGEST_REASON = 160  # characters
MOST_KNOWN = 1000  # words; the search takes a millisecond for a few
CLEARER_REASONS = {
    "Padding_idx must be within num_embeddings": "pad_token_id must be below vocab_size"
}
"""PyTorch's messages about a wrong model config, in the words of the config."""

EXHAUSTED = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "threads",
    errno.EMFILE: "file handles",
    errno.ENFILE: "file handles",
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk space",
}
EXHAUSTED_WORDS = {
    "can't start new thread": "threads",
    "DefaultCPUAllocator": "memory",
    "out of memory": "memory",
    "Too many open files": "file handles",
    "Cannot allocate memory": "memory",
}
"""What libraries say of a resource that is used up; PyTorch's and Arrow's errors have no number."""


class RankwiseError(Exception):
    """Something failed while running (exit code 1).

    The message is one line of at most 300 characters that can be shown in any terminal.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(as_message(message))


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


@contextmanager
def reading(failure: str) -> Iterator[None]:
    """Turn whatever libraries raise in the ``with`` block into one line that starts with a text.

    It stands at the boundary of each reader, because no list of exceptions is complete: a file may
    contradict itself in any way, and a panic of a library in Rust is not even an ``Exception``. The
    error is kept as the cause.

    Raises:
        RequestError: the text, and the first sentence of the error.
    """
    try:
        yield
    except (RankwiseError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if ran_out(error) not in (None, "memory"):  # which is no fault of the file
            raise
        raise RequestError(f"{failure}: {first_sentence(error)}") from error


def ran_out(error: BaseException) -> str | None:
    """Return which resource of the machine an error says is used up; None for another error."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return EXHAUSTED.get(error.errno or 0)
    if not isinstance(error, RuntimeError | ValueError):
        return None
    text = str(error)
    return next((EXHAUSTED_WORDS[words] for words in EXHAUSTED_WORDS if words in text), None)


def first_sentence(error: BaseException) -> str:
    """Return an error's first sentence as one short line; a bare key or nothing, with its kind."""
    if type(error).__module__.startswith("datasets.") and error.__cause__ is not None:
        error = error.__cause__  # which says what is wrong; the error itself does not
    text = str(getattr(error, "strerror", None) or error)
    text = " ".join(text.split()).split(". ")[0].rstrip(".")
    kind = type(error).__name__
    if not text or isinstance(error, KeyError):
        text = f"{kind}: {text}" if text else kind
    text = CLEARER_REASONS.get(text, text)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def not_allowed(name: str, value: object, allowed: str) -> RequestError:
    """Return the refusal of a value, to be raised: ``margin -1: allowed is a number above 0``."""
    return RequestError(f"{name} {shown(value)}: allowed is {allowed}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, or an empty string."""
    matches = difflib.get_close_matches(word[:LONGEST_SHOWN], list(islice(known, MOST_KNOWN)), n=1)
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
