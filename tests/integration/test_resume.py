"""Killed at any moment, the same command ends with the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from rankwise.cli import main
from rankwise.store.records import read_evidence
from rankwise.store.trial_files import read_steps
from tests.cli.test_main import run_here
from tests.conftest import make_reviews

MEASURED = {"train_seconds", "pack_seconds", "peak_memory_bytes"}  # by the clock, or with it


def command(tiny_model: Path, data: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "rankwise", "sweep", "--model", str(tiny_model), "--data", str(data),
            "--ranks", "2,4", "--margin", "0.5", "--learning-rate", "5e-3,1e-2", "--out", str(out)]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a sweep that was never interrupted: two ranks, two rates, two seeds."""
    home = tmp_path_factory.mktemp("whole")
    make_reviews(120).to_csv(home / "reviews.csv", index=False)
    assert main(command(tiny_model, home / "reviews.csv", home / "out")[3:]) == 0
    return home / "out"


def decision(out: Path) -> dict[str, object]:
    content = json.loads((out / "decision.json").read_text())
    del content["sha256"]
    for row in content["table"]:
        for name in MEASURED:
            del row[name]
    return content


def trials(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("trials/[!.]*")}


def stop_after(
    process: subprocess.Popen[bytes], out: Path, complete: int, with_signal: signal.Signals
) -> None:
    """Send the signal as soon as so many trials are complete."""
    deadline = time.monotonic() + 120
    while len(trials(out)) < complete:
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(with_signal)
    process.wait(60)


def finish(
    capfd: pytest.CaptureFixture[str], command: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process."""
    done = run_here(capfd, *command[3:])
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "stops",
    [
        ((signal.SIGINT, 2),),
        pytest.param(((signal.SIGKILL, 1), (signal.SIGINT, 3)), marks=pytest.mark.slow),
        pytest.param(tuple((signal.SIGKILL, n) for n in (1, 2, 4)), marks=pytest.mark.slow),
        pytest.param(((signal.SIGTERM, 3),), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_goes_on_and_ends_the_same(
    tiny_model: Path,
    whole: Path,
    tmp_path: Path,
    stops: tuple[tuple[signal.Signals, int], ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, out = whole.parent / "reviews.csv", tmp_path / "out"
    kept: dict[str, int] = {}
    for with_signal, complete in stops:
        process = subprocess.Popen(
            command(tiny_model, data, out),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        stop_after(process, out, complete, with_signal)
        errors = process.stderr.read().decode() if process.stderr else ""
        assert "Traceback" not in errors
        if with_signal is signal.SIGINT:
            assert process.returncode == 130
            assert errors.splitlines()[-1].startswith(
                "rankwise: interrupted; complete trials are kept"
            )
        assert not (out / "decision.json").exists()
        now = trials(out)
        assert kept.items() <= now.items()  # the same directories, not written again
        kept = now
    done = finish(capfd, command(tiny_model, data, out))
    assert f"{len(kept)} trials are complete" in done.stderr
    assert kept.items() <= trials(out).items()
    assert decision(out) == decision(whole)
    pd.testing.assert_frame_equal(read_evidence(out), read_evidence(whole))
    assert not [path for path in out.rglob(".partial*")]


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob(".unfinished/[!.]*"))


def test_a_trial_killed_in_training_goes_on_from_its_checkpoint(
    tiny_model: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL comes after a checkpoint; steps, evidence and adapters end the same to the bit."""
    data, plain, killed = whole.parent / "reviews.csv", tmp_path / "plain", tmp_path / "killed"

    def run(out: Path, minutes: str) -> list[str]:
        return [*command(tiny_model, data, out), "--epochs", "4", "--checkpoint-minutes", minutes,
                "--seeds", "1", "--ranks", "4,8", "--learning-rate", "5e-3"]  # fmt: skip

    finish(capfd, run(plain, "1000"))
    process = subprocess.Popen(
        run(killed, "1e-6"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoints(killed):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait(60)
    assert not (killed / "decision.json").exists()
    done = finish(capfd, run(killed, "1000"))
    assert "goes on after step" in done.stderr
    assert not (killed / ".unfinished").exists()
    assert list(trials(killed)) and trials(killed).keys() == trials(plain).keys()
    for name in trials(plain):
        one, other = killed / "trials" / name, plain / "trials" / name
        assert read_steps(one) == read_steps(other)
        weights = "adapter/adapter_model.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes()
    pd.testing.assert_frame_equal(read_evidence(killed), read_evidence(plain))
    assert decision(killed) == decision(plain)


def test_a_finished_sweep_is_not_run_again(
    tiny_model: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = trials(whole)
    start = os.stat(whole / "best" / "adapter_model.safetensors").st_size
    done = finish(capfd, command(tiny_model, whole.parent / "reviews.csv", whole))
    assert "learning rate 0.005 " not in done.stderr  # no trial was announced
    assert trials(whole) == before
    assert os.stat(whole / "best" / "adapter_model.safetensors").st_size == start
