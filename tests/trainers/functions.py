"""Functions that a child process can be given; they import no torch, so a call is fast."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rankwise.trainers.function import FunctionTrial
from tests.trainers.fake_trainer import write_adapter


def path(trial: FunctionTrial) -> Path:
    """Write an adapter in the trial's directory."""
    print(f"rank {trial.rank} in process {os.getpid()}")
    write_adapter(trial.out, trial.rank, trial.lora_alpha, trial.seed)
    return trial.out


def elsewhere(trial: FunctionTrial) -> str:
    """Write an adapter in a directory of its own, relative to the caller's."""
    write_adapter(Path(trial.name), trial.rank, trial.lora_alpha, trial.seed)
    return trial.name


def broken(trial: FunctionTrial) -> Path:
    """Raise an error."""
    raise OSError(f"no file for rank {trial.rank}")


def killed(trial: FunctionTrial) -> None:
    """End as the system ends a process that takes all memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(trial: FunctionTrial) -> None:
    """Start another process, and take too long."""
    inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (trial.out / "pids").write_text(f"{os.getpid()} {inner.pid}")
    time.sleep(60)


def number(trial: FunctionTrial) -> int:
    """Return what judges nothing."""
    return 3
