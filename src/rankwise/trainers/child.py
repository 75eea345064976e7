"""A command as a child process: a group of its own, its output in a file, no orphans."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from rankwise.trainers.orphans import MARK, end_processes

GRACE_SECONDS = 10.0  # between the interruption of a child and the end of its group
POLL_SECONDS = 0.1
PID_FILE = "process.json"
TAIL_BYTES = 8192
SAME_START = 1.0  # seconds by which the system's starting times of one process may differ


class Child:
    """A running command.

    It leads a process group, and whatever it starts inherits a mark and ends with it. A small
    process watches over it, which ends them too if this process is killed.

    Args:
        words: program and arguments.
        log: file that takes its output and its errors.
        environment: variables to set besides those of this process.
        place: directory that notes the process, so that a later sweep can end it.
    """

    def __init__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], place: Path
    ) -> None:
        self.mark = uuid.uuid4().hex
        # Python's prints would otherwise wait in a buffer, and nothing could be shown live.
        own = {"PYTHONUNBUFFERED": "1", MARK: self.mark}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, **own},
                start_new_session=True,
            )
        try:
            self._watcher = subprocess.Popen(
                python("rankwise.trainers.orphans", str(self.process.pid), self.mark),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._note(place / PID_FILE)
        except BaseException:  # no process may be left, or Ctrl-C came
            end_processes(self.process.pid, self.mark)
            self.process.wait()
            raise

    def _note(self, file: Path) -> None:
        """Write down which process runs."""
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid).create_time()
            content = {"pid": self.process.pid, "started": started, "mark": self.mark}
            file.write_text(json.dumps(content))

    def exit_code(self) -> int | None:
        """Return the exit code; None while the command runs, and below 0 if a signal ended it."""
        code = self.process.poll()
        if code is not None:
            self.kill()  # what it left running
        return code

    def kill(self) -> None:
        """End the command and all that it started at once."""
        end_processes(self.process.pid, self.mark)
        self.process.wait()
        if self._watcher.poll() is None:
            self._watcher.communicate(b"!")


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with the search path of this process."""
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; "
    code += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]


def stop_all(children: Sequence[Child]) -> None:
    """Interrupt children as Ctrl-C does; after ten seconds, end their groups."""
    for child in children:
        with suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        while any(child.process.poll() is None for child in children):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    finally:  # also if Ctrl-C is pressed again
        for child in children:
            child.kill()


def end_leftover(place: Path) -> None:
    """End the child of a sweep that was killed, if it still runs."""
    try:
        noted = json.loads((place / PID_FILE).read_text())
        # An earlier version of rankwise noted no mark; no process has an empty one.
        mark, started = str(noted.get("mark", "")), float(noted["started"])
        process = psutil.Process(noted["pid"])
        is_same = abs(process.create_time() - started) < SAME_START
    except psutil.NoSuchProcess:
        is_same = False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, psutil.Error):
        return  # what was noted is not readable, or is no mapping
    end_processes(process.pid if is_same else None, mark)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception inside the block, so that children can be stopped.

    A signal that is ignored, as SIGHUP is below nohup, stays ignored. Python delivers signals to
    the main thread alone; elsewhere nothing changes.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_end(log: Path) -> str:
    """Return the end of a log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not blank; a bar that redraws itself is one line."""
    lines = [line.rstrip().rpartition("\r")[2].strip() for line in log_end(log).split("\n")]
    return [line for line in lines if line][-count:]
