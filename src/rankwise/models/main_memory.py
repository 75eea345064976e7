"""Main memory that this process may still take: the least of what several limits leave."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of a control group: its limit, its use, and the entry of ``memory.stat`` that counts file
pages, which the kernel drops when memory is wanted."""


def free_main_memory(root: Path = ROOT) -> int:
    """Return the bytes that are left by the machine, its control groups and the limits of a shell.

    A container sees the memory of the whole machine, and is ended at the limit of its own control
    group (version 1 or 2). ``ulimit -v`` and ``-d`` limit a process.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    left = [int(psutil.virtual_memory().available), *_left_by_groups(root), *_left_by_limits()]
    return max(0, min(left))


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group leaves, that of this process and those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = PurePosixPath(path).relative_to("/")
        if not controllers:
            places = [(mounts, VERSION_2), (mounts / "unified", VERSION_2)]
        elif "memory" in controllers.split(","):
            places = [(mounts / "memory", VERSION_1)]
        else:
            continue
        for mount, names in places:
            # A container may see its own group as the top, under the host's name for it.
            for group in (inside, *inside.parents):
                with suppress(OSError, ValueError):  # no such group, or without a limit: "max"
                    yield _left_by_group(mount / group, *names)


def _left_by_group(group: Path, limit: str, used: str, droppable: str) -> int:
    left = int((group / limit).read_text()) - int((group / used).read_text())
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == droppable:
            left += int(value)
    return left


def _left_by_limits() -> Iterator[int]:
    """Yield what the limits of this process leave (``ulimit``)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = psutil.Process().memory_info()
    taken = {resource.RLIMIT_AS: used.vms, resource.RLIMIT_DATA: getattr(used, "data", 0)}
    for kind, bytes_taken in taken.items():
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - bytes_taken
