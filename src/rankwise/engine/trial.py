"""What goes into an engine and what comes out."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from rankwise.engine.config import TrainingConfig

if TYPE_CHECKING:
    import torch

    from rankwise.lora.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One adapter to train once, or to cut from one that is trained.

    Attributes:
        rank: r.
        seed: sets the head, the adapter's initial values and the data order.
        learning_rate: at which it is trained; of a cut, at which what it is cut from was.
        lora_alpha: PEFT's.
        use_rslora: scaling is ``lora_alpha / sqrt(r)``, not ``lora_alpha / r``.
        truncated_from: name of the complete trial to cut; None to train.
    """

    rank: int
    seed: int
    learning_rate: float
    lora_alpha: float
    use_rslora: bool = False
    truncated_from: str | None = None

    @property
    def name(self) -> str:
        """Directory name, one for each trial of a sweep."""
        return f"r{self.rank}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(kw_only=True)
class FinishedTrial:
    """One trained adapter with all that was measured about it.

    Attributes:
        trial: what was asked.
        diverged: a loss or a gradient was not finite; there is no evidence then.
        steps: per optimizer step ``step``, ``epoch``, ``train_loss``, ``learning_rate``, ``grad_norm``.
        evidence: per held-out example ``example_id``, ``loss``, ``score``; no rows if diverged.
        adapter: parameters under PEFT's names.
        adapter_config: PEFT's ``adapter_config.json``.
        trainable_params: adapter entries and those of modules trained in full.
        train_seconds: of the training loop, without loading and scoring, had the trial trained alone.
        pack_seconds: of the training loop of all the pack's trials together.
        pack_size: trials that trained together.
        eval_seconds: of scoring the held-out examples.
        peak_memory_bytes: largest sum of live tensors in a training step, see `rankwise.engine.peak_memory`.
    """

    trial: Trial
    diverged: bool
    trainable_params: int
    train_seconds: float
    pack_seconds: float
    pack_size: int
    eval_seconds: float
    peak_memory_bytes: int
    adapter_config: dict[str, Any]
    adapter: "dict[str, torch.Tensor]"
    evidence: pd.DataFrame
    steps: list[dict[str, float]] = field(default_factory=list)


def no_evidence() -> pd.DataFrame:
    """Return the evidence of a diverged trial: no rows."""
    return pd.DataFrame(
        {
            "example_id": pd.Series(dtype="int64"),
            "loss": pd.Series(dtype="float64"),
            "score": pd.Series(dtype="float64"),
        }
    )


def share_of_training(recipe: TrainingConfig, train: Sized, held_out: Sized) -> float:
    """Return which share of a trial's work is training, the rest being scoring.

    A step on an example costs about three forward passes: forward, and backward through base and adapter.
    """
    work = 3.0 * recipe.epochs * len(train)
    return work / (work + len(held_out))


class Engine(Protocol):
    """Trains adapters over one frozen base.

    Attributes:
        pack_size: trials that it trains at once.
    """

    pack_size: int

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train every trial and yield each as soon as it is finished, in any order."""
        ...

    def score(self, adapters: "Sequence[Adapter]") -> list[pd.DataFrame]:
        """Score finished adapters on the held-out examples: evidence as in `FinishedTrial`, one each."""
        ...
