"""What ran out when a command failed for want of memory, threads, file handles or space."""

import errno

from rankwise.errors import REMEDIES, ExhaustedError, ran_out

KEPT = "complete trials are kept, and the same command resumes from there"


def explain_exhausted(error: BaseException, command: str) -> str | None:
    """Return what ran out, what is kept and which setting helps; None for another failure."""
    resource = ran_out(error)
    if resource is None:
        return None
    where = ""
    if isinstance(error, ExhaustedError):
        where = f": {error.failure}"
    elif isinstance(error, OSError) and error.filename and error.errno != errno.ENOMEM:
        where = f" at {str(error.filename)!r}"
    kept = f"{KEPT}; " if command == "sweep" else ""
    return f"out of {resource}{where}; {kept}{REMEDIES[resource]}"
