"""A function in a child process: judged as in this process, and ended as a command is."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.engine.trial import FinishedTrial
from rankwise.errors import RequestError
from rankwise.store.records import read_trial
from rankwise.trainers.engine import TrainerEngine
from rankwise.trainers.failures import Failures
from rankwise.trainers.function_child import IMPORTING, FunctionLaunch, check_child
from rankwise.trainers.function_name import FunctionName
from tests.trainers import functions
from tests.trainers.stubs import NormJudge, Watcher, is_gone, trial


def run(function: Callable[..., Any], place: Path, **changes: Any) -> FinishedTrial:
    launch = FunctionLaunch(
        command=FunctionName("f"), trials=place / "trials", function=function, **changes
    )
    watcher = Watcher()
    failures = Failures({}, lambda name: None, watcher.note)
    (finished,) = TrainerEngine(launch, NormJudge(), watcher, failures).train([trial(4)])
    return finished


def test_what_it_returns_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = run(functions.path, tmp_path)
    assert (finished.failed, finished.trainable_params) == (None, 4 * 64)
    (line,) = finished.files["log.txt"].read_text().splitlines()
    assert line.startswith("rank 4 in process ") and str(os.getpid()) not in line.split()
    monkeypatch.chdir(tmp_path)
    assert run(functions.elsewhere, tmp_path).trainable_params == 4 * 64


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (functions.broken, "its process ended with exit code 1: OSError: no file for rank 4"),
        (functions.killed, "its process was killed by SIGKILL"),
        (functions.number, "the function returned a int; allowed are the path of an adapter"),
    ],
)
def test_failures(tmp_path: Path, function: Callable[..., Any], reason: str) -> None:
    finished = run(function, tmp_path)
    assert finished.diverged
    assert finished.failed is not None and reason in finished.failed


def test_one_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    finished = run(functions.sleep, tmp_path, timeout=2.0)
    assert finished.failed is not None
    assert "longer than trial_timeout" in finished.failed
    for pid in (finished.files["out"] / "pids").read_text().split():
        assert is_gone(int(pid))


SCRIPT = """
import rankwise

def train(trial):
    print("in the script")
    return {"eval_loss": 1 / trial.rank}

if __name__ == "__main__":
    rankwise.sweep(
        train=train, train_in="child", ranks=(2, 4), seeds=1, learning_rate=1e-3,
        metric="eval_loss", out="out", trials_at_once=2, trial_timeout=5,
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_guard", [True, False])
def test_a_function_of_the_script_that_runs(tmp_path: Path, has_guard: bool) -> None:
    text = SCRIPT if has_guard else SCRIPT.replace('__name__ == "__main__"', "True")
    (tmp_path / "script.py").write_text(text)
    words = [sys.executable, "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    if not has_guard:
        assert "put the sweep below: if __name__ == '__main__':" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    for rank in (2, 4):
        place = tmp_path / f"out/trials/r{rank}-lr0.001-seed0"
        assert read_trial(place).eval_loss == 1 / rank
        assert (place / "log.txt").read_text() == "in the script\n"


def test_the_user_s_process_may_still_choose_how_it_starts_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    check_child(functions.path)
    assert run(functions.path, tmp_path).failed is None
    assert multiprocessing.get_start_method(allow_none=True) is None
    multiprocessing.set_start_method("spawn")  # raises once it is chosen


def test_functions_that_no_other_process_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"train cannot be pickled \(.*lambda.*at the top of"):
        check_child(lambda trial: 3)
    with pytest.raises(RequestError, match="train_in 'thread': allowed are 'process' and 'child'"):
        rankwise.sweep(train=functions.path, train_in="thread")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="train_in 'child' goes with train"):
        rankwise.sweep(train_in="child")
    monkeypatch.setenv(IMPORTING, "1")
    with pytest.raises(RequestError, match="if __name__"):
        check_child(functions.path)
