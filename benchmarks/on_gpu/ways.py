"""The ways to train that are compared: PEFT + Trainer as tutorials write it, and the engines."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.on_gpu.device import peak_allocated, synchronize
from benchmarks.on_gpu.lengths import padded_tokens
from benchmarks.on_gpu.models import Scale, Size, random_model, tokenizer
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.errors import RankwiseError
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.tasks.base import Encoded

RANK, RATE = 16, 1e-4
FAILURES = (RuntimeError, RankwiseError)
"""What a way that does not fit the memory raises; the other ways go on."""


@dataclass(frozen=True)
class Timed:
    """A measured run of some steps.

    Attributes:
        seconds: of all steps of all trials.
        tokens: of these steps, without padding, of all trials.
        padding: share of what the model computed that was padding.
        peak: largest number of bytes allocated on the GPU.
        resident: bytes allocated between steps.
    """

    seconds: float
    tokens: int
    padding: float
    peak: int | None
    resident: int | None = None


def make_trial(rank: int = RANK, seed: int = 0) -> Trial:
    """Return a trial at a usual learning rate."""
    return Trial(rank=rank, seed=seed, learning_rate=RATE, lora_alpha=rank)


def training(batch: int, steps: int, scale: Scale) -> TrainingConfig:
    """Return the settings of a run; the base is already in its precision."""
    return TrainingConfig(batch_size=batch, max_steps=steps, precision=scale.precision)


class _Steps(TrainerCallback):
    """Notes the time after the warm-up steps and at the end."""

    def __init__(self, warmup: int, device: torch.device) -> None:
        self.warmup, self.device = warmup, device
        self.start = self.stop = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time where the measured steps start and where they end."""
        if state.global_step in (self.warmup, state.max_steps):
            synchronize(self.device)
            self.start, self.stop = self.stop, time.perf_counter()


class WithTrainer:
    """PEFT and transformers' Trainer, written as tutorials write it.

    The base is loaded in bf16, `bf16=True` runs it under autocast, attention is PyTorch's SDPA, and
    each batch is padded to its longest example.

    Args:
        grouped: whether batches hold examples of like length (``group_by_length``).
    """

    def __init__(self, size: Size, scale: Scale, grouped: bool = False) -> None:
        self.scale, self.grouped = scale, grouped
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear"
        )
        with quiet_libraries():
            self.model: Any = get_peft_model(random_model(size, scale), lora)

    def trainable(self) -> int:
        """Count the trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def run(self, examples: Encoded, batch: int, steps: int, warmup: int = 2) -> Timed:
        """Train for some steps after a warm-up and time them."""
        clock = _Steps(warmup, self.scale.device)
        seen: list[int] = []
        pad = DataCollatorForSeq2Seq(tokenizer())

        def collate(rows: list[dict[str, Any]]) -> Any:
            seen.extend(len(row["input_ids"]) for row in rows)
            return pad(rows)

        with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
            trainer = Trainer(
                model=self.model,
                args=TrainingArguments(
                    output_dir=scratch,
                    per_device_train_batch_size=batch,
                    learning_rate=RATE,
                    max_steps=warmup + steps,
                    bf16=self.scale.dtype == torch.bfloat16,
                    use_cpu=self.scale.device.type == "cpu",
                    train_sampling_strategy="group_by_length" if self.grouped else "random",
                    remove_unused_columns=False,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=[examples.features(row) for row in range(len(examples))],
                data_collator=collate,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            peak = peak_allocated(self.scale.device, trainer.train)
        used = seen[warmup * batch : (warmup + steps) * batch]
        padding = 1 - sum(used) / padded_tokens(used, batch)
        return Timed(clock.stop - clock.start, sum(used), padding, peak)


class _Watch:
    """Keeps the memory allocated between steps, and what the engine says about memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resident: int | None = None
        self.notes: list[str] = []

    def work(self, share: float) -> None:
        """Note the memory after a step."""
        if self.device.type == "cuda":
            self.resident = torch.cuda.memory_allocated(self.device)

    def note(self, text: str) -> None:
        """Keep a sentence, such as that a pack was halved."""
        self.notes.append(text)


class WithFused:
    """The fused engine, with a pack of trials over one base."""

    def __init__(self, base: BaseModel, scale: Scale) -> None:
        self.base, self.scale = base, scale
        self.watch = _Watch(scale.device)
        self.again: Callable[[], object] = lambda: None

    def engine(self, examples: Encoded, batch: int, steps: int, trials: int) -> FusedEngine:
        """Return an engine that scores on a single example, so that a run is mostly training."""
        config = training(batch, steps, self.scale)
        few = examples.take([0])
        return FusedEngine(self.base, examples, few, config, self.watch, pack_size=trials)

    def run(
        self, examples: Encoded, batch: int, steps: int, trials: int = 1, rank: int = RANK
    ) -> Timed:
        """Train a pack twice and time its second training; `again` trains it once more.

        The first training compiles kernels, and measures what the engine measures once.
        """
        engine = self.engine(examples, batch, steps, trials)
        pack = [make_trial(rank, seed) for seed in range(trials)]
        finished: list[FinishedTrial] = list(engine.train(pack))
        peak = peak_allocated(self.scale.device, lambda: finished.extend(engine.train(pack)))
        last = finished[-1]
        if last.pack_size != trials:
            raise RuntimeError("; ".join(self.watch.notes))
        if last.diverged or len(last.steps) != steps:
            raise RuntimeError(f"the pack stopped after {len(last.steps)} of {steps} steps")
        self.again = lambda: list(engine.train(pack))
        tokens = sum(examples.lengths) * steps * batch * trials // len(examples)
        return Timed(last.pack_seconds, tokens, 0.0, peak, self.watch.resident)
