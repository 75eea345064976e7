"""A command that a signal stops, at any moment, ends with one line and the signal's exit code."""

import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwise.cli import signals

CASES = [
    (signal.SIGINT, 130, "rankwise: interrupted"),
    (signal.SIGTERM, 143, "rankwise: terminated (SIGTERM)"),
    (signal.SIGHUP, 129, "rankwise: ended with its terminal (SIGHUP)"),
]


def attentive() -> None:
    """A shell's background job ignores Ctrl-C, and so would all that it starts."""
    for number in signals.WORDS:
        signal.signal(number, signal.SIG_DFL)


def start(*command: object) -> subprocess.Popen[str]:
    words = [str(word) for word in command]
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=attentive,
    )


def assert_one_line(process: subprocess.Popen[str], code: int, words: str) -> None:
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), errors
    assert errors.startswith(words), errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "code", "words"), CASES)
def test_a_signal_while_torch_is_imported(
    number: signal.Signals, code: int, words: str, reviews: Path, tmp_path: Path
) -> None:
    process = start("-m", "rankwise", "sweep", "--data", reviews, "--out", tmp_path / "out")
    deadline = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    assert_one_line(process, code, words)


HEADER = """
import os, signal, sys, time
from rankwise import cli
from rankwise.cli.options import Command
def run(*requests):
    BODY
import rankwise.cli.inspect
rankwise.cli.inspect.COMMAND = Command("", (), (), run)
sys.argv[1:] = ["inspect"]
cli.program()
"""


@pytest.mark.parametrize(("number", "code", "words"), CASES)
@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        # A destructor swallows what is raised in it.
        "type('Held', (), {'__del__': lambda held: (SEND, time.sleep(0.01))})(); time.sleep(60)",
        # A library turns it into an error of its own.
        "\n    try: SEND; time.sleep(60)\n    except BaseException: raise ImportError('no')",
    ],
    ids=["waiting", "in a destructor", "turned into another error"],
)
def test_a_signal_meets_any_code(body: str, number: signal.Signals, code: int, words: str) -> None:
    send = f"os.kill(os.getpid(), {int(number)})"
    if "SEND" not in body:
        body = f"{send}; {body}"
    process = start("-c", HEADER.replace("BODY", body.replace("SEND", send)))
    assert_one_line(process, code, words)


def test_an_ignored_signal_stays_ignored() -> None:
    body = "os.kill(os.getpid(), signal.SIGHUP)"
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start("-c", script + HEADER.replace("BODY", body))
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_system_without_hangups_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    scope = runpy.run_path(signals.__file__)
    assert set(scope["WORDS"]) == {signal.SIGINT, signal.SIGTERM}
