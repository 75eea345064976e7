"""The reference engine, the yardstick: PEFT and transformers' Trainer, one trial after another."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rankwise.engine.adapter_init import adapter_state, json_config, put_on_adapter, saved_modules
from rankwise.engine.batches import EpochOrder, epoch_batches
from rankwise.engine.config import BASE_CHANGING_INITS, TrainingConfig
from rankwise.engine.evaluate import evaluate
from rankwise.engine.inits import EVA_BATCH, base_kept, draw_from_data
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.engine.trial import FinishedTrial, Trial, no_evidence, share_of_training
from rankwise.lora.adapter import Adapter
from rankwise.lora.conversion import for_original_base
from rankwise.lora.files import write_adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.quantization import resident_tensors
from rankwise.tasks.base import Encoded

LOGGED = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
}


class ReferenceEngine:
    """Trains each trial as a tutorial would, with AdamW, a linear schedule with warm-up, and no dropout.

    A trial is a function of its own request and the data: the seed sets the head, the adapter's initial values and
    the order of the data, and nothing is carried over from an earlier trial.

    Args:
        base: the frozen base, whose adapters are put on and taken off here.
        train: examples to learn from.
        held_out: examples to judge by.
        recipe: what all trials share.
        on_work: told of each finished share of a trial; the shares of one trial add up to 1.
    """

    pack_size = 1

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        recipe: TrainingConfig,
        on_work: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.recipe = recipe
        self.on_work = on_work
        self.steps_per_epoch = math.ceil(len(train) / recipe.batch_size)
        self.train_share = share_of_training(recipe, train, held_out)
        self._saved = saved_modules(base)

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train the trials one after another."""
        for trial in trials:
            with quiet_libraries(), base_kept(self.base, self.recipe.init):
                finished = self._train_one(trial)
            yield finished

    def score(self, adapters: Sequence[Adapter]) -> list[pd.DataFrame]:
        """Score adapters one after another, each loaded by PEFT."""
        results = []
        for adapter in adapters:
            with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
                write_adapter(adapter, Path(scratch) / "adapter")
                results.append(score_adapter(self.base, Path(scratch) / "adapter", self.held_out))
        return results

    def _train_one(self, trial: Trial) -> FinishedTrial:
        recipe = self.recipe
        model = put_on_adapter(self.base, trial, self._saved, recipe.use_dora, recipe.init)
        try:
            if recipe.init == "eva":
                self._draw_from_data(model, trial)
            initial = _tensors(model)
            with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
                watch = _Watch(lambda: self.on_work(self.train_share / self.total_steps))
                trainer = _Trainer(
                    EpochOrder(self.examples.lengths, self.recipe.batch_size, trial.seed),
                    model=model,
                    args=self._arguments(trial, scratch),
                    train_dataset=_Rows(self.examples),
                    data_collator=_collator(self.base),
                    callbacks=[watch],
                    optimizers=(self._own_optimizer(model, trial), None),
                )
                trainer.remove_callback(PrinterCallback)
                trainer.remove_callback(ProgressCallback)
                on_cuda = next(model.parameters()).is_cuda
                if on_cuda:
                    torch.cuda.reset_peak_memory_stats()
                trainer.train()
                peak = torch.cuda.max_memory_allocated() if on_cuda else None
            tensors = _tensors(model)
            adapter = Adapter(tensors, json_config(model))
            if recipe.init in BASE_CHANGING_INITS and not watch.diverged:
                adapter = for_original_base(adapter, Adapter(initial, adapter.config))
            start = time.perf_counter()
            evidence = no_evidence() if watch.diverged else self._evaluate(model)
            eval_seconds = time.perf_counter() - start
            self.on_work(1.0 - self.train_share * watch.seen / self.total_steps)
            diverged = watch.diverged or not bool(evidence["loss"].map(math.isfinite).all())
            return FinishedTrial(
                trial=trial,
                diverged=diverged,
                trainable_params=sum(value.numel() for value in tensors.values()),
                train_seconds=watch.seconds,
                pack_seconds=watch.seconds,
                pack_size=1,
                eval_seconds=eval_seconds,
                peak_memory_bytes=self._peak_memory(model, trainer.optimizer)
                if peak is None
                else peak,
                adapter_config=dict(adapter.config),
                adapter=dict(adapter.tensors),
                evidence=no_evidence() if diverged else evidence,
                steps=watch.steps,
            )
        finally:
            model.unload()

    def _evaluate(self, model: nn.Module) -> pd.DataFrame:
        return evaluate(model, self.base.tokenizer, self.held_out, self.base.objective)

    def _own_optimizer(self, model: PeftModel, trial: Trial) -> torch.optim.Optimizer | None:
        """Return the optimizer of LoRA+; None where the Trainer makes one."""
        ratio = self.recipe.loraplus_ratio
        if ratio == 1.0:
            return None
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=trial.learning_rate, loraplus_lr_ratio=ratio, fused=True
        )

    def _draw_from_data(self, model: PeftModel, trial: Trial) -> None:
        size = max(EVA_BATCH, trial.rank)
        batches = epoch_batches(self.examples.lengths, size, trial.seed, 0)
        draw_from_data(
            model, trial.rank, [batch for batch in batches if len(batch) == size], self._padded
        )

    def _padded(self, rows: Sequence[int]) -> Any:
        return _collator(self.base)([self.examples.features(row) for row in rows])

    @property
    def _device(self) -> torch.device:
        return next(self.base.model.parameters()).device

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a trial."""
        return self.steps_per_epoch * self.recipe.epochs

    def _arguments(self, trial: Trial, scratch: str) -> TrainingArguments:
        recipe = self.recipe
        arguments = TrainingArguments(
            output_dir=scratch,
            learning_rate=trial.learning_rate,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            optim="adamw_torch_fused",  # AdamW, one kernel a tensor
            weight_decay=0.0,
            max_grad_norm=recipe.max_grad_norm,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(recipe.warmup_share * self.total_steps),
            seed=trial.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            use_cpu=self._device.type
            == "cpu",  # where bitsandbytes keeps a base, even beside Apple's GPU
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
        )
        # With several GPUs in sight the Trainer would multiply the batch by their number.
        arguments._n_gpu = min(1, arguments.n_gpu)
        return arguments

    def _peak_memory(self, model: nn.Module, optimizer: Any) -> int:
        """Measure one more step on the longest examples; its result is thrown away."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper
        longest = sorted(range(len(self.examples)), key=self.examples.lengths.__getitem__)[
            -self.recipe.batch_size :
        ]
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in self._padded(longest).items()}
        model.train()
        optimizer.zero_grad(set_to_none=True)

        def step() -> None:
            model(**batch).loss.backward()
            optimizer.step()

        states = [
            v
            for state in optimizer.state.values()
            for v in state.values()
            if isinstance(v, torch.Tensor)
        ]
        return peak_live_bytes(step, [*resident_tensors(model), *states, *batch.values()])


def _tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of what a model trains, under the names that PEFT saves."""
    return {
        key: value.detach().cpu().clone().contiguous()
        for key, value in adapter_state(model).items()
    }


class _Trainer(Trainer):
    """A Trainer that sees its examples in the given order."""

    def __init__(self, order: EpochOrder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised examples as the collator wants them."""

    def __init__(self, examples: Encoded) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.examples.features(row)


def _collator(base: BaseModel) -> Any:
    """Return what pads a batch: of a causal language model the labels as well."""
    collator = (
        DataCollatorForSeq2Seq
        if base.objective.task_type == "CAUSAL_LM"
        else DataCollatorWithPadding
    )
    return collator(base.tokenizer)


class _Watch(TrainerCallback):
    """Times the loop, keeps every step's figures, and stops a trial whose loss or gradient is not finite."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.steps: list[dict[str, float]] = []
        self.seen = 0
        self.seconds = 0.0
        self.diverged = False
        self._start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen += 1
        self.on_step()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {LOGGED[key]: float(value) for key, value in logs.items() if key in LOGGED}
        self.steps.append({"step": state.global_step, **row})
        # Clipping turns an infinite gradient into none, so the loss alone would not show it.
        if not (math.isfinite(row["train_loss"]) and math.isfinite(row.get("grad_norm", 0.0))):
            self.diverged = True
            control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start


def score_adapter(base: BaseModel, adapter: Path, examples: Encoded) -> pd.DataFrame:
    """Put a saved adapter on the base, as a user would, and score every example (see `evaluate`)."""
    with quiet_libraries():
        model = PeftModel.from_pretrained(base.model, adapter)
        try:
            return evaluate(model, base.tokenizer, examples, base.objective)
        finally:
            model.unload()
