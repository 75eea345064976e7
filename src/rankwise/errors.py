"""The ways a command can fail, each reported as one line."""

import difflib
import errno
import re
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

REMEDIES = {
    "memory": "--max-length, --batch-size and the largest rank lower what a sweep needs",
    "threads": "OMP_NUM_THREADS=1 needs fewer; ulimit -u, or the container's limit, allows more",
    "file handles": "ulimit -n allows more",
    "disk space": "free some, or give another --out",
}
WANTED = re.compile(r"(?:allocate|alloc of size|mmap) ([\d.]+) ?(?:([KMGTPE])i?B)?")
"""The size in a message of NumPy, PyTorch or Arrow."""


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


class ExhaustedError(RankwiseError):
    """The machine has run out of something, which is no fault of the request (exit code 1).

    Attributes:
        resource: memory, threads, file handles or disk space.
        failure: what could not be done.
    """

    def __init__(self, resource: str, failure: str) -> None:
        super().__init__(f"out of {resource}: {failure}; {REMEDIES[resource]}")
        self.resource = resource
        self.failure = failure


@contextmanager
def reading(failure: str) -> Iterator[None]:
    """Turn whatever libraries raise in the ``with`` block into one line that starts with a text.

    It stands at the boundary of each reader, because no list of exceptions is complete: a file may
    contradict itself in any way, and a panic of a library in Rust is not even an ``Exception``. The
    error is kept as the cause.

    Raises:
        RequestError: the text, and the first sentence of the error.
        ExhaustedError: the machine ran out of something.
    """
    try:
        yield
    except (RankwiseError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        resource = ran_out(error)
        if resource is not None and not _asks_for_too_much(error):
            raise ExhaustedError(resource, failure) from error
        raise RequestError(f"{failure}: {first_sentence(error)}") from error


def ran_out(error: BaseException) -> str | None:
    """Return which resource of the machine an error says is used up; None for another error.

    Where a library raised one error from another, the first one counts as well.
    """
    if isinstance(error, ExhaustedError):
        return error.resource
    if isinstance(error, RankwiseError):
        return None
    found = None
    if isinstance(error, MemoryError):
        found = "memory"
    elif isinstance(error, OSError):
        found = EXHAUSTED.get(error.errno or 0)
    elif isinstance(error, RuntimeError):
        text = str(error)
        found = next((EXHAUSTED_WORDS[words] for words in EXHAUSTED_WORDS if words in text), None)
    elif isinstance(error, ValueError) and str(error).endswith("C error: out of memory"):
        found = "memory"  # pandas'; another ValueError may quote the words from the data
    if found is None and error.__cause__ is not None:
        return ran_out(error.__cause__)
    return found


def _asks_for_too_much(error: BaseException) -> bool:
    """Return whether more main memory was wanted than the machine has, as by a damaged header."""
    text = str(error)
    wanted = WANTED.search(text)
    if wanted is None or "out of memory" in text:  # which only says a GPU
        return False
    import psutil

    number, unit = wanted.groups(default="")
    size = float(number.rstrip(".")) * 1024 ** " KMGTPE".index(unit or " ")
    return size > psutil.virtual_memory().total


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
