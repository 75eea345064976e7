import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rankwise.trainers import child as module
from rankwise.trainers.child import (
    PID_FILE,
    Child,
    end_leftover,
    ending_on_signals,
    last_lines,
    stop_all,
)
from tests.trainers.stubs import is_gone

# A test run in the background of a shell ignores SIGINT, and so would its children.
SLEEPERS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(inner.pid, flush=True)
time.sleep(60)
"""
# As the workers of torchrun, which lead groups of their own.
APART = SLEEPERS.replace('(60)"])', '(60)"], start_new_session=True)')
STUBBORN = SLEEPERS.replace("signal.default_int_handler", "signal.SIG_IGN")


def start(code: str, place: Path, **environment: str) -> Child:
    return Child([sys.executable, "-c", code], place / "log.txt", environment, place)


def inner_pid(place: Path) -> int:
    deadline = time.monotonic() + 20
    while not (lines := last_lines(place / "log.txt", 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(lines[0])


def wait(child: Child) -> int:
    deadline = time.monotonic() + 20
    while (code := child.exit_code()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return code


def test_output_errors_and_exit_code(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['SET']); sys.stderr.write('bad\\n'); sys.exit(3)"
    child = start(code, tmp_path, SET="here")
    assert wait(child) == 3
    assert last_lines(tmp_path / "log.txt", 5) == ["here", "bad"]


@pytest.mark.parametrize("code", [SLEEPERS, APART])
def test_what_a_child_leaves_running_ends_with_it(tmp_path: Path, code: str) -> None:
    child = start(code.replace("time.sleep(60)\n", "pass\n"), tmp_path)
    assert wait(child) == 0
    assert is_gone(inner_pid(tmp_path))


def test_no_command_runs_on_if_its_watcher_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class OnePopen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if started:
                raise BlockingIOError("no more processes")
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", OnePopen)
    with pytest.raises(BlockingIOError):
        start(SLEEPERS, tmp_path)
    assert started[0].returncode == -signal.SIGKILL


def test_interrupting_ends_the_child_and_its_group(tmp_path: Path) -> None:
    child = start(SLEEPERS, tmp_path)
    inner = inner_pid(tmp_path)
    stop_all([child])
    assert "KeyboardInterrupt" in (tmp_path / "log.txt").read_text()
    assert is_gone(inner)


def test_a_child_that_ignores_the_interruption_is_killed_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    child = start(STUBBORN, tmp_path)
    inner = inner_pid(tmp_path)
    stop_all([child])
    assert child.process.returncode == -signal.SIGKILL
    assert is_gone(inner)


@pytest.mark.parametrize("version", ["this", "before"])
def test_the_child_of_a_killed_sweep_is_ended_later(tmp_path: Path, version: str) -> None:
    child = start(SLEEPERS, tmp_path)
    inner = inner_pid(tmp_path)
    noted = json.loads((tmp_path / PID_FILE).read_text())
    # Another process with this number.
    other = {**noted, "started": noted["started"] - 100, "mark": "another"}
    (tmp_path / PID_FILE).write_text(json.dumps(other))
    end_leftover(tmp_path)
    assert child.exit_code() is None
    if version == "before":
        del noted["mark"]
    (tmp_path / PID_FILE).write_text(json.dumps(noted))
    end_leftover(tmp_path)
    child.process.wait(10)
    assert is_gone(inner)
    end_leftover(tmp_path / "absent")


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", '"a"', "{}", '{"started": [1]}', "{"])
def test_a_note_of_a_child_that_says_nothing_usable(tmp_path: Path, text: str) -> None:
    (tmp_path / PID_FILE).write_text(text)
    end_leftover(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_termination_is_an_exception_inside_the_block(number: signal.Signals, code: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as caught, ending_on_signals():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert caught.value.code == code
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with ending_on_signals():
            os.kill(os.getpid(), number)  # as below nohup
    finally:
        signal.signal(number, before)


def test_last_lines_of_a_log_with_a_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\n\n 1%|\r 50%|\r100%|\n\xff end\n")
    assert last_lines(tmp_path / "log", 2) == ["100%|", "\N{REPLACEMENT CHARACTER} end"]
    assert last_lines(tmp_path / "absent", 2) == []
