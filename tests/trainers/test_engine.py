"""Trials by a fake trainer, judged by the weights of its adapters without a base model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwise.errors import RankwiseError
from rankwise.trainers.child import Child
from rankwise.trainers.engine import TrainerEngine
from tests.trainers.stubs import Watcher, engine, is_gone, trial


def notes(engine: TrainerEngine) -> str:
    assert isinstance(engine.progress, Watcher)
    return " | ".join(engine.progress.notes)


def test_trials_run_and_are_judged(tmp_path: Path) -> None:
    trainer = engine(tmp_path)
    first, second = trainer.train([trial(4), trial(8)])
    assert [first.trial.rank, second.trial.rank] == [4, 8]
    assert first.trainable_params == 4 * 64
    assert first.evidence["loss"].gt(0).all()
    assert not first.diverged
    assert first.train_seconds == first.pack_seconds > 0
    assert "training rank 4 at 0.002\ndone" in first.files["log.txt"].read_text()
    assert (first.files["out"] / "adapter_config.json").exists()
    assert isinstance(trainer.progress, Watcher)
    assert sum(trainer.progress.shares) == pytest.approx(2.0)
    assert trainer.progress.lines[-1] == []


def test_a_first_trial_s_log_tells_how_far_it_is(tmp_path: Path) -> None:
    trainer = engine(tmp_path, "--do steps")
    list(trainer.train([trial(4)]))
    assert isinstance(trainer.progress, Watcher)
    assert trainer.progress.shares == pytest.approx([0.25, 0.75])


def test_steps_before_those_of_training_are_taken_back(tmp_path: Path) -> None:
    trainer = engine(tmp_path, "--do phases")
    list(trainer.train([trial(4)]))
    assert isinstance(trainer.progress, Watcher)
    assert trainer.progress.shares == pytest.approx([0.75, -0.5, 0.75])


def test_several_trials_run_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    trainer = engine(tmp_path, "--do sleep --only 9", at_once=2, timeout=1.5)
    results = {each.trial.rank: each for each in trainer.train([trial(9), trial(4)])}
    assert time.monotonic() - started < 20
    assert list(results) == [4, 9]  # the other did not wait for the one that slept
    assert {each.pack_size for each in results.values()} == {2}


def test_one_trial_that_fails_counts_as_diverged_and_others_go_on(tmp_path: Path) -> None:
    trainer = engine(tmp_path, "--do fail --only 4")
    first, second = trainer.train([trial(4), trial(8)])
    assert first.diverged
    assert first.failed == (
        "its command ended with exit code 1: ValueError: no such file for rank 4"
    )
    assert "Traceback" in first.files["log.txt"].read_text()
    assert not second.diverged
    assert "r4-lr0.002-seed0 failed, and counts as diverged" in notes(trainer)


def test_two_trials_that_fail_alike_stop_the_sweep(tmp_path: Path) -> None:
    taken: list[str] = []
    trainer = engine(tmp_path, "--do fail")
    trainer.failures.take_back = taken.append
    with pytest.raises(RankwiseError) as caught:
        list(trainer.train([trial(4), trial(8), trial(16)]))
    message, log = str(caught.value), tmp_path / "trials/.failed-r8-lr0.002-seed0/log.txt"
    assert "\n" not in message
    assert f"see {log}" in message
    assert "no such file for rank 8" in log.read_text()
    assert taken == ["r4-lr0.002-seed0"]
    assert not (tmp_path / "trials/.running-r16-lr0.002-seed0").exists()


def test_failures_of_an_earlier_run_of_the_sweep_count(tmp_path: Path) -> None:
    earlier = {"r4": "its command ended with exit code 1: ValueError: no such file for rank 4"}
    with pytest.raises(RankwiseError, match=r"r4 and r8.* failed alike"):
        list(engine(tmp_path, "--do fail", earlier).train([trial(8)]))


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("nothing", "it left no adapter"),
        ("wrong-rank", "its adapter has rank 5"),
        ("remove", "its command ended with exit code 3"),
        ("killed", "its command was killed by SIGKILL"),
    ],
)
def test_what_makes_a_trial_fail(tmp_path: Path, do: str, reason: str) -> None:
    (result,) = engine(tmp_path, f"--do {do}").train([trial(4)])
    assert result.failed is not None
    assert result.failed.startswith(reason)
    assert (result.diverged, result.adapter) == (True, {})
    assert all(path.exists() for path in result.files.values())


def test_weights_that_are_not_finite_diverge_and_never_stop_the_sweep(tmp_path: Path) -> None:
    results = list(engine(tmp_path, "--do nan").train([trial(4), trial(8)]))
    failed = "its adapter has weights that are not finite"
    assert [(each.diverged, each.failed) for each in results] == [(True, failed)] * 2


def test_a_killed_trial_is_tried_once_more(tmp_path: Path) -> None:
    trainer = engine(tmp_path, "--do killed-once")
    (result,) = trainer.train([trial(4)])
    assert (result.failed, result.diverged) == (None, False)
    assert "killed by SIGKILL; it is tried once more" in notes(trainer)


def test_a_trial_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    (result,) = engine(tmp_path, "--do sleep", timeout=1.0).train([trial(4)])
    assert result.failed is not None
    assert "longer than trial_timeout" in result.failed
    for pid in (result.files["out"] / "pids").read_text().split():
        assert is_gone(int(pid))


SWEEP = """
import sys
from pathlib import Path
from tests.trainers.stubs import engine, trial
try:
    list(engine(Path(sys.argv[1]), "--do sleep").train([trial(4)]))
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 7), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_process_leaves_no_orphan(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)],
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = tmp_path / "trials/.running-r4-lr0.002-seed0/out/pids"
    deadline = time.monotonic() + 60
    while not pids.exists() or not pids.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == code
    for pid in pids.read_text().split():
        assert is_gone(int(pid))


def test_the_children_of_a_killed_sweep_end_when_it_starts_again(tmp_path: Path) -> None:
    place = tmp_path / "trials/.running-r64-lr0.002-seed0"
    place.mkdir(parents=True)
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = Child(words, place / "log.txt", {}, place)
    engine(tmp_path)
    assert child.process.wait(10) == -signal.SIGKILL


def test_no_file_of_an_earlier_try_is_left(tmp_path: Path) -> None:
    stale = tmp_path / "trials/.running-r4-lr0.002-seed0/out/checkpoint-9"
    stale.mkdir(parents=True)
    (result,) = engine(tmp_path).train([trial(4)])
    assert os.listdir(result.files["out"]) and not stale.exists()
