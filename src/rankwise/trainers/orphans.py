"""Ends all processes of a trial, and does so too when the sweep itself was killed."""

import os
import signal
import sys
import time
from contextlib import suppress

import psutil

MARK = "RANKWISE_TRIAL"  # variable that a trial's processes inherit, whatever group they are in
ROUNDS = 20  # of looking for processes; new ones may start while others are ended
ROUND_SECONDS = 0.05


def end_processes(leader: int | None, mark: str) -> None:
    """End a process group at once, and all processes that inherited a mark.

    Workers of torchrun lead groups of their own, so the group alone is not enough.

    Args:
        leader: number of the process that leads the group; None if it may be another by now.
        mark: value of the variable.
    """
    if leader is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    for _ in range(ROUNDS):
        marked = _marked(mark)
        if not marked:
            return
        for process in marked:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(ROUND_SECONDS)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def watch() -> None:
    """Wait for a word on standard input; if it is closed without one, end the trial's processes.

    A sweep holds the other end of this pipe, and even SIGKILL closes it.
    """
    leader, mark = sys.argv[1:]
    if not sys.stdin.buffer.read(1):
        end_processes(int(leader), mark)


if __name__ == "__main__":
    watch()
