"""Processes that are found by their mark, and a pipe that tells when their parent is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.trainers.child import python
from rankwise.trainers.orphans import MARK, end_processes
from tests.trainers.stubs import is_gone

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def sleeper(mark: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        SLEEP, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    return process


def test_only_processes_with_the_mark_end() -> None:
    one, other = sleeper("one"), sleeper("other")
    end_processes(None, "one")
    assert is_gone(one.pid)
    assert other.poll() is None
    end_processes(other.pid, "one")  # by its group
    assert is_gone(other.pid)


@pytest.mark.parametrize("word", [b"", b"!"])
def test_the_watcher_acts_only_on_a_pipe_that_closes_without_a_word(
    tmp_path: Path, word: bytes
) -> None:
    watched = sleeper("watched")
    words = python("rankwise.trainers.orphans", str(watched.pid), "watched")
    subprocess.run(words, input=word, check=True, cwd=tmp_path)
    assert (watched.poll() is None) == bool(word)
    end_processes(watched.pid, "watched")
    watched.wait(10)
