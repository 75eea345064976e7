"""What ran out when a command failed for want of memory, threads, file handles or space."""

import errno

from rankwise.errors import RequestError, ran_out

KEPT = "complete trials are kept, and the same command resumes from there"
LITTLE_MEMORY = 2**30  # bytes
SETTINGS = {
    "memory": "--max-length, --batch-size and the largest rank lower what a sweep needs",
    "threads": "OMP_NUM_THREADS=1 needs fewer; ulimit -u, or the container's limit, allows more",
    "file handles": "ulimit -n allows more",
    "disk space": "free some, or give another --out",
}


def explain_exhausted(error: BaseException, command: str) -> str | None:
    """Return what ran out, what is kept and which setting helps; None for another failure."""
    resource = ran_out(error)
    if isinstance(error, RequestError) and ran_out(error.__cause__ or error) == "memory":
        # A damaged file may ask for any number of bytes, so that the machine must tell.
        from rankwise.models.main_memory import free_main_memory

        resource = "memory" if free_main_memory() < LITTLE_MEMORY else None
    if resource is None:
        return None
    where = ""
    if isinstance(error, OSError) and error.filename and error.errno != errno.ENOMEM:
        where = f" at {str(error.filename)!r}"
    kept = f"{KEPT}; " if command == "sweep" else ""
    return f"out of {resource}{where}; {kept}{SETTINGS[resource]}"
