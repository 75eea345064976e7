"""Trials and their results: the input and output of an engine."""

from collections.abc import Generator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from rankwise.engine.config import TrainingConfig
from rankwise.formatting import exact

if TYPE_CHECKING:
    import torch

    from rankwise.lora.adapter import Adapter
    from rankwise.tasks.base import Encoded


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One adapter to train once, or to truncate from a trained one.

    Training starts from values drawn from the seed or, with ``starts_from``, from an adapter that
    exists; ranks and alphas are then that adapter's.
    """

    rank: int
    seed: int  # of the head, the adapter's initial values and the data order
    learning_rate: float  # used in training; a truncated adapter inherits its source's
    lora_alpha: float
    use_rslora: bool = False  # scaling is lora_alpha / sqrt(r) instead of lora_alpha / r
    truncated_from: str | None = None  # trial whose adapter is truncated; None to train
    starts_from: str | None = None  # trial whose adapter training starts from; None for a new one
    share_of_steps: float | None = None  # of the settings' optimizer steps; None for all of them

    @property
    def name(self) -> str:
        """Name of the trial's directory: no two trials of a sweep share one.

        It has rank, learning rate and seed, the share of the steps, and what training starts from.
        """
        name = f"r{self.rank}-lr{exact(self.learning_rate)}-seed{self.seed}"
        if self.share_of_steps is not None:
            name += f"-steps{exact(self.share_of_steps)}"
        return name if self.starts_from is None else f"{name}-from-{self.starts_from}"


@dataclass(kw_only=True)
class FinishedTrial:
    """A trained adapter and everything measured about it."""

    trial: Trial
    diverged: bool  # a loss or gradient was not finite; there is no evidence then
    trainable_params: int  # entries of the adapter and of modules trained in full
    train_seconds: float  # training loop, had the trial trained alone
    pack_seconds: float  # training loop of all the pack's trials together
    pack_size: int  # number of trials that trained together
    eval_seconds: float  # scoring of the held-out examples
    peak_memory_bytes: int  # see rankwise.engine.peak_memory
    adapter_config: dict[str, Any]  # content of PEFT's adapter_config.json
    adapter: "dict[str, torch.Tensor]"  # parameters under PEFT's names
    evidence: pd.DataFrame  # example_id, loss and score of each held-out example
    # For each optimizer step: step, epoch, train_loss, learning_rate and grad_norm.
    steps: list[dict[str, float]] = field(default_factory=list)
    failed: str | None = None  # how it failed, if it did; it counts as diverged then
    # Further files to move into its directory; what lies beside them is removed then.
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedTrial:
    """All that a trial in training needs to go on exactly.

    Data order, schedule and dropout are functions of the trial and the step, so they need nothing.

    Attributes:
        name: the trial's name, unique within a sweep.
        tensors: parameters, optimizer states and what else changes on the device, on the CPU.
        progress: number of steps (``started``), their figures, seconds: what JSON can hold.
        made_with: the settings of the machine that decide how sums round.
    """

    name: str
    tensors: "Mapping[str, torch.Tensor]"
    progress: Mapping[str, Any]
    made_with: Mapping[str, Any]


class TrainingProgress(Protocol):
    """A receiver of what an engine does."""

    def note(self, text: str) -> None:
        """Receive a sentence about the training."""
        ...

    def work(self, share: float) -> None:
        """Receive the share of a trial that has been done; the shares of a trial add up to 1."""
        ...


class NoProgress:
    """A receiver that ignores everything."""

    def note(self, text: str) -> None:
        """Ignore the sentence."""

    def work(self, share: float) -> None:
        """Ignore the share."""


class Checkpoints(Protocol):
    """Where trials in training are kept for a later process."""

    def write(self, saved: Sequence[SavedTrial]) -> None:
        """Keep trials that share passes, all or none, in place of what was kept of them before."""
        ...

    def read(self, name: str, made_with: Mapping[str, Any]) -> SavedTrial | None:
        """Return the trial of a name at its last step kept with these settings; None if none is."""
        ...


class Engine(Protocol):
    """Trains adapters over one frozen base."""

    @property
    def pack_size(self) -> int:
        """Number of trials that train at once; it may fall while the engine trains."""
        ...

    def train(
        self, trials: Sequence[Trial], starts: "Mapping[str, Adapter] | None" = None
    ) -> Generator[FinishedTrial, None, None]:
        """Train every trial and yield each as soon as it is finished, in any order.

        Args:
            trials: the trials.
            starts: the adapters that trials start from, by the names in ``starts_from``.
        """
        ...

    def score(
        self, adapters: "Sequence[Adapter]", examples: "Encoded | None" = None
    ) -> list[pd.DataFrame]:
        """Return the evidence of finished adapters on examples, by default the held-out ones."""
        ...


def no_evidence() -> pd.DataFrame:
    """Return the evidence of a diverged trial: no rows."""
    dtypes = {"example_id": "int64", "loss": "float64", "score": "float64"}
    return pd.DataFrame(columns=list(dtypes)).astype(dtypes)


def share_of_training(config: TrainingConfig, train: Sized, held_out: Sized) -> float:
    """Return the share of a trial's work that is training; the rest is scoring.

    A training step costs about three forward passes: its backward pass costs two.
    """
    examples = config.epochs * len(train)
    if config.max_steps is not None:
        examples = config.max_steps * config.batch_size
    work = 3.0 * examples
    return work / (work + len(held_out))
