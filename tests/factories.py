"""Builders of requests, evidence, finished trials and sweep directories, shared by the tests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.store.digests import SEAL, SUMS, sealed_bytes, sums_bytes
from rankwise.store.directory import SweepStore
from rankwise.store.records import (
    EVIDENCE_COLUMNS,
    Environment,
    Fingerprints,
    SweepPaths,
    SweepRecord,
    TaskRecord,
    read_chance_loss,
    read_evidence,
    read_sweep,
    read_train_losses,
    read_trials,
)
from rankwise.store.trial_files import check_adapter
from rankwise.sweeps.progress import Silent
from rankwise.tasks.dialogues import Dialogue

Turns = Sequence[tuple[str, str]]
NO_EVIDENCE = pd.DataFrame(columns=list(EVIDENCE_COLUMNS))
REQUEST = SweepRecord(
    settings={
        "ranks": [4, 8],
        "seeds": 2,
        "learning_rate": "auto",
        "margin": 0.02,
        "confidence": 0.95,
    },
    machine={"device": "auto"},
    chosen={"gradient_checkpointing": "off", "micro_batch_tokens": None, "pack_size": 2},
    paths=SweepPaths(model=None, data="reviews.csv", eval_data=None),
    fingerprints=Fingerprints(
        data="b", model_files="a", weights="w", chat_template="none", tokens="t"
    ),
    task=TaskRecord(
        name="reviews.csv",
        examples="2 classes",
        task_type="SEQ_CLS",
        loss="nats per example",
        chance="guessing by the classes' shares",
        chance_loss=None,
        score="accuracy",
        data_layout=None,
        chat_template=False,
        answers_marked=False,
        label_names=["0", "1"],
        train_examples=8,
        held_out_examples=2,
        test_examples=2,
    ),
    environment=Environment(
        versions={"rankwise": "0.1.0"}, platform="Linux", cpu_count=2, threads=1, device="cpu"
    ),
    command="rankwise.sweep(...)",
)


def request(**settings: Any) -> SweepRecord:
    """Return a sweep's request with changed settings."""
    return replace(REQUEST, settings={**REQUEST.settings, **settings})


def evidence_of(
    rank: int, learning_rate: float, seed: int, losses: Sequence[float], score: float = 0.0
) -> pd.DataFrame:
    """Return a trial's evidence, a row per loss; without losses, the row of a diverged trial."""
    diverged = not losses
    return pd.DataFrame(
        {
            "rank": rank,
            "seed": seed,
            "learning_rate": learning_rate,
            "example_id": [-1] if diverged else range(len(losses)),
            "loss": [float("nan")] if diverged else losses,
            "score": score,
            "diverged": diverged,
        }
    )


def finished(
    rank: int = 4,
    seed: int = 0,
    *,
    diverged: bool = False,
    losses: Sequence[float] = (0.25, 0.75),
    **changes: Any,
) -> FinishedTrial:
    """Return a finished trial of two held-out examples.

    Args:
        rank: its rank.
        seed: its seed.
        diverged: whether its losses stopped being finite.
        losses: the losses of the held-out examples 3 and 5.
        changes: to other fields of the trial, for example ``train_seconds``.
    """
    values: dict[str, Any] = {
        "trial": Trial(rank=rank, seed=seed, learning_rate=1e-3, lora_alpha=rank),
        "diverged": diverged,
        "trainable_params": 6,
        "train_seconds": 1.5,
        "pack_seconds": 1.5,
        "pack_size": 1,
        "eval_seconds": 0.5,
        "peak_memory_bytes": 1000,
        "adapter_config": {"peft_type": "LORA", "r": rank},
        "adapter": {"lora_A.weight": torch.arange(6.0).view(2, 3)},
        "evidence": pd.DataFrame({"example_id": [3, 5], "loss": losses, "score": [1.0, 0.0]}),
        "steps": [{"step": 1, "train_loss": float("nan") if diverged else 0.7}],
    }
    return FinishedTrial(**{**values, **changes})


def save_sweep(
    directory: Path, trials: Sequence[FinishedTrial], record: SweepRecord = REQUEST
) -> None:
    """Save a sweep directory with these complete trials."""
    with SweepStore(directory, record) as store:
        for trial in trials:
            store.add(trial, {"epochs": 1})


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Change a JSON file of a sweep by hand, and give it the digest of its new content."""
    path.write_bytes(sealed_bytes({key: content[key] for key in content if key != SEAL}))


def seal_trial(trial: Path) -> None:
    """Give a trial that was changed by hand the digests of its new files."""
    files = [path for path in trial.rglob("*") if path.is_file() and path.name != SUMS]
    contents = {path.relative_to(trial).as_posix(): path.read_bytes() for path in files}
    (trial / SUMS).write_bytes(sums_bytes(contents))


class Notes(Silent):
    """A receiver of progress that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep the sentence."""
        self.notes.append(text)


def chat(turns: Turns, **options: Any) -> Dialogue:
    """Return a dialogue of roles and contents; all answers but one that opens it are learnt."""
    messages = tuple({"role": role, "content": content} for role, content in turns)
    learnt = tuple(role == "assistant" and place > 0 for place, (role, _) in enumerate(turns))
    return Dialogue(messages, **{"learnt": learnt, **options})


def flipped_bit(content: bytes, place: int) -> bytes:
    """Return a copy with one bit flipped; a place below 0 counts from the end."""
    place %= 8 * len(content)
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def read_all(out: Path) -> str:
    """Return all that a decision and a hand-over take from a sweep directory, as text."""
    trials = read_trials(out)
    adapters = [check_adapter(trial.directory) for trial in trials]
    files = [path.read_bytes() for folder in adapters for path in sorted(folder.iterdir())]
    frames = (read_evidence(out), read_train_losses(out), read_chance_loss(out))
    texts = [frame.to_csv() for frame in frames if not isinstance(frame, float | None)]
    return repr((read_sweep(out), trials, files, texts))
