"""A trainer engine over the fake trainer, a judge without a base, and what the tests look up.

It imports no torch, so that a process that is to be stopped starts fast.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from rankwise.engine.trial import Trial
from rankwise.sweeps.progress import Silent
from rankwise.trainers.command import parse_command
from rankwise.trainers.engine import DIVERGED, Judged, Launch, TrainerEngine
from rankwise.trainers.failures import Failures
from rankwise.trainers.left_adapter import find_adapter, read_trained_adapter

SCRIPT = Path(__file__).with_name("fake_trainer.py")
COMMAND = (
    f"{sys.executable} {SCRIPT} --rank {{rank}} --alpha {{lora_alpha}} --lr {{learning_rate}} "
    "--seed {seed} --out {out}"
)


class NormJudge:
    """Its loss of every example is the norm of A."""

    def judge(self, trial: Trial, out: Path) -> Judged:
        adapter = read_trained_adapter(find_adapter(out), trial, "llama")
        if adapter is None:
            return DIVERGED
        loss = next(float(x.norm()) for name, x in adapter.tensors.items() if "lora_A" in name)
        rows = pd.DataFrame({"example_id": [3, 5], "loss": loss, "score": 0.0})
        tensors, config = dict(adapter.tensors), dict(adapter.config)
        return Judged(evidence=rows, adapter=tensors, adapter_config=config)

    def score(self, adapters: Sequence[Any], examples: Any = None) -> list[pd.DataFrame]:
        raise AssertionError("these trials are judged alone, nothing else is scored")


class Watcher(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shares: list[float] = []
        self.lines: list[Sequence[str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def work(self, share: float) -> None:
        self.shares.append(share)

    def log(self, trial: str, lines: Sequence[str]) -> None:
        self.lines.append(lines)


def engine(
    place: Path, do: str = "", earlier: dict[str, str] | None = None, **changes: Any
) -> TrainerEngine:
    command = parse_command(f"{COMMAND} {do}")
    launch = Launch(command=command, trials=place / "trials", **changes)
    watcher = Watcher()
    failures = Failures(earlier or {}, lambda name: None, watcher.note)
    return TrainerEngine(launch, NormJudge(), watcher, failures)


def trial(rank: int, seed: int = 0) -> Trial:
    return Trial(rank=rank, seed=seed, learning_rate=2e-3, lora_alpha=2 * rank)


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False
