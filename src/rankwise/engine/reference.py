"""The reference engine, the yardstick of the fused one: PEFT and Trainer, one trial at a time."""

import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
import transformers
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from rankwise.engine import adapter_init
from rankwise.engine.batches import EpochSampler, epoch_batches, longest_rows
from rankwise.engine.config import BASE_CHANGING_INITS, InitName, TrainingConfig
from rankwise.engine.evaluate import evaluate
from rankwise.engine.micro_batches import MicroBatchTrainer, split_batch
from rankwise.engine.peak_memory import optimizer_states, peak_live_bytes
from rankwise.engine.schedule import OPTIMIZERS, SCHEDULERS, trial_steps, warmup_steps
from rankwise.engine.trial import FinishedTrial, Trial, no_evidence, share_of_training
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter
from rankwise.lora.conversion import for_original_base
from rankwise.lora.files import write_adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import (
    quiet_libraries,
    trainer_with_sampler,
    use_at_most_one_gpu,
)
from rankwise.models.out_of_memory import OutOfMemory, attempt, too_little_memory
from rankwise.models.quantization import resident_tensors
from rankwise.tasks.base import Encoded

Result = TypeVar("Result")

STEP_FIGURES = ("grad_norm", "learning_rate", "epoch")  # kept of the Trainer's logs, with the loss


class ReferenceEngine:
    """Trains each trial as a tutorial would: PEFT, and the Trainer with the sweep's settings.

    A trial depends on its settings and the data alone: the seed sets the head, the adapter's
    initial values and the data order, and nothing is left over from an earlier trial.

    Args:
        base: the frozen base, to which adapters are attached and from which they are detached.
        on_work: called with each finished share of a trial; the shares of a trial add up to 1.

    Raises:
        RequestError: checkpointing is requested of a model that has none, or fp16 without CUDA.
    """

    pack_size = 1

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        config: TrainingConfig,
        on_work: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.config = config
        self.on_work = on_work
        self.train_share = share_of_training(config, train, held_out)
        self._saved = adapter_init.saved_modules(base)
        has_checkpointing = getattr(base.model, "supports_gradient_checkpointing", False)
        if config.gradient_checkpointing == "on" and not has_checkpointing:
            kind = type(base.model).__name__
            raise RequestError(f"gradient_checkpointing 'on': {kind} has none; take off or auto")
        if base.compute_dtype == torch.float16 and base.device.type != "cuda":
            # The Trainer scales losses on CUDA alone.
            problem = f"precision 'fp16' on {base.device} needs the fused engine"
            raise RequestError(f"{problem}; take --precision bf16 or fp32")

    def train(
        self, trials: Sequence[Trial], starts: Mapping[str, Adapter] | None = None
    ) -> Generator[FinishedTrial, None, None]:
        """Train the trials one after another."""
        for trial in trials:
            what, changes = self._memory_advice(trial)
            start = (starts or {})[trial.starts_from] if trial.starts_from else None
            work = partial(self._train_apart, trial, start)
            yield _fitting(work, self.base.device, what, changes)

    def score(
        self, adapters: Sequence[Adapter], examples: Encoded | None = None
    ) -> list[pd.DataFrame]:
        """Score adapters one after another, each loaded by PEFT."""
        chosen = self.held_out if examples is None else examples
        results = []
        for adapter in adapters:
            with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
                directory = Path(scratch) / "adapter"
                write_adapter(adapter, directory)
                with self._machine():
                    score = partial(score_adapter, self.base, directory, chosen)
                    results.append(_fitting(score, self.base.device, *_scoring_advice(chosen)))
        return results

    @contextmanager
    def _machine(self) -> Iterator[None]:
        """Apply the settings of the machine to the base inside the ``with`` block."""
        config, base = self.config, self.base
        with ExitStack() as stack:
            stack.enter_context(quiet_libraries())
            if config.gradient_checkpointing == "on":
                stack.enter_context(_checkpointing(base.model))
            if base.device.type == "cuda":  # the Trainer takes the current GPU
                stack.enter_context(torch.cuda.device(base.device))
            yield

    def _memory_advice(self, trial: Trial) -> tuple[str, str]:
        """Return what a trial trains at once, and what to change if that does not fit."""
        config, longest = self.config, max(self.examples.lengths)
        size = config.batch_size * longest
        at_once = f"batches of {config.batch_size} examples of up to {longest} tokens"
        if config.micro_batch_tokens is not None:
            size = min(size, config.micro_batch_tokens)
            at_once = f"{max(size, longest)} tokens at once"
        options = ["--quantization nf4"]
        if config.gradient_checkpointing != "on":
            options.insert(0, "--gradient-checkpointing on")
        if size > longest:
            options.insert(0, f"--micro-batch-tokens {max(longest, size // 2)}")
        *first, last = options
        added = f"{', '.join(first)} or {last}" if first else last
        changes = f"add {added}, or lower --max-length or the largest rank"
        return f"one trial of rank {trial.rank} with {at_once}", changes

    def _train_apart(self, trial: Trial, start: Adapter | None) -> FinishedTrial:
        """Train a trial, and leave nothing of it in the base."""
        init = self.config.init if start is None else "default"
        with self._machine(), adapter_init.base_restored(self.base, init):
            return self._train_one(trial, init, start)

    def _train_one(self, trial: Trial, init: InitName, start: Adapter | None) -> FinishedTrial:
        config, base = self.config, self.base
        model = adapter_init.attach_adapter(
            base, trial, self._saved, config.use_dora, init, config.lora_dropout, start
        )
        steps = trial_steps(config, trial, self.examples)
        try:
            if init == "eva":
                self._initialize_from_data(model, trial)
            initial = _copied_state(model)
            record = _StepRecord(lambda: self.on_work(self.train_share / steps))
            optimizer, cuda_peak = self._run_trainer(model, trial, record)
            trained = _copied_state(model)
            adapter = Adapter(trained, adapter_init.json_config(model))
            if init in BASE_CHANGING_INITS and not record.diverged:
                adapter = for_original_base(adapter, Adapter(initial, adapter.config))
            began = time.perf_counter()
            evidence = no_evidence()
            if not record.diverged:
                score = partial(evaluate, model, base.tokenizer, self.held_out, base.objective)
                evidence = _fitting(score, base.device, *_scoring_advice(self.held_out))
            eval_seconds = time.perf_counter() - began
            self.on_work(1.0 - self.train_share * len(record.steps) / steps)
            diverged = record.diverged or not bool(evidence["loss"].map(math.isfinite).all())
            peak = self._peak_memory(model, optimizer) if cuda_peak is None else cuda_peak
            return FinishedTrial(
                trial=trial,
                diverged=diverged,
                trainable_params=sum(value.numel() for value in trained.values()),
                train_seconds=record.seconds,
                pack_seconds=record.seconds,
                pack_size=1,
                eval_seconds=eval_seconds,
                peak_memory_bytes=peak,
                adapter_config=dict(adapter.config),
                adapter=dict(adapter.tensors),
                evidence=no_evidence() if diverged else evidence,
                steps=record.steps,
            )
        finally:
            model.unload()

    def _run_trainer(
        self, model: PeftModel, trial: Trial, record: "_StepRecord"
    ) -> tuple[Any, int | None]:
        """Train; return the optimizer, and the peak of a GPU's memory in bytes."""
        with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
            trainer = trainer_with_sampler(
                MicroBatchTrainer,
                EpochSampler(self.examples.lengths, self.config.batch_size, trial.seed),
                model=model,
                args=self._arguments(trial, scratch),
                train_dataset=range(len(self.examples)),
                data_collator=self._padded_batch,
                callbacks=[record],
                optimizers=(self._loraplus_optimizer(model, trial), None),
                micro_batch_tokens=self.config.micro_batch_tokens,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.remove_callback(transformers.ProgressCallback)
            on_cuda = next(model.parameters()).is_cuda
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
            return trainer.optimizer, torch.cuda.max_memory_allocated() if on_cuda else None

    def _loraplus_optimizer(self, model: PeftModel, trial: Trial) -> torch.optim.Optimizer | None:
        """Return the optimizer of LoRA+; None for plain LoRA, whose optimizer the Trainer makes."""
        config = self.config
        if config.loraplus_ratio == 1.0:
            return None
        kind: type[torch.optim.Optimizer] = torch.optim.AdamW
        options = {"fused": True}
        if config.optimizer == "adamw-8bit":
            from bitsandbytes.optim import AdamW8bit

            kind, options = AdamW8bit, {}
        return create_loraplus_optimizer(
            model,
            kind,
            lr=trial.learning_rate,
            loraplus_lr_ratio=config.loraplus_ratio,
            loraplus_weight_decay=config.weight_decay,
            **options,
        )

    def _initialize_from_data(self, model: PeftModel, trial: Trial) -> None:
        size = max(adapter_init.EVA_BATCH, trial.rank)
        batches = epoch_batches(self.examples.lengths, size, trial.seed, 0)
        full = [batch for batch in batches if len(batch) == size]
        adapter_init.initialize_from_data(model, trial.rank, full, self._padded_batch)

    def _padded_batch(self, rows: Sequence[int]) -> Any:
        collator: Any = transformers.DataCollatorWithPadding(self.base.tokenizer)
        if self.base.objective.task_type == "CAUSAL_LM":  # pads labels as well
            collator = transformers.DataCollatorForSeq2Seq(self.base.tokenizer)
        return collator([self.examples.features(row) for row in rows])

    def _arguments(self, trial: Trial, scratch: str) -> transformers.TrainingArguments:
        config, steps = self.config, trial_steps(self.config, trial, self.examples)
        device, dtype = self.base.device, self.base.compute_dtype
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            learning_rate=trial.learning_rate,
            num_train_epochs=config.epochs,
            max_steps=steps if trial.share_of_steps is not None else config.max_steps or -1,
            per_device_train_batch_size=config.batch_size,
            optim=OPTIMIZERS[config.optimizer],
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            lr_scheduler_type=SCHEDULERS[config.lr_scheduler],
            warmup_steps=warmup_steps(config, steps),
            seed=trial.seed,
            bf16=dtype == torch.bfloat16 and device.type != "mps",
            fp16=dtype == torch.float16 and device.type == "cuda",  # with loss scaling
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            # bitsandbytes keeps a base on the CPU even if there is an Apple GPU.
            use_cpu=device.type == "cpu",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
        )
        use_at_most_one_gpu(arguments)
        return arguments

    def _peak_memory(self, model: nn.Module, optimizer: Any) -> int:
        """Measure a thrown-away step on the longest examples, in bytes."""
        inner = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's wrapper
        longest = longest_rows(self.examples.lengths, self.config.batch_size)
        batch = self._padded_batch(longest).to(self.base.device)
        model.train()
        inner.zero_grad(set_to_none=True)

        def step() -> None:
            for part, share in split_batch(batch, self.config.micro_batch_tokens):
                (model(**part).loss * share).backward()
            inner.step()

        resident = [*resident_tensors(model), *optimizer_states(inner), *batch.values()]
        return peak_live_bytes(step, resident)


def _fitting(work: Callable[[], Result], device: torch.device, what: str, changes: str) -> Result:
    """Return what a function returns.

    Raises:
        RankwiseError: it ran out of memory; the line says what did not fit and what to change.
    """
    try:
        return attempt(work)
    except OutOfMemory as error:
        raise too_little_memory(error, device, what, changes) from None


def _scoring_advice(examples: Encoded) -> tuple[str, str]:
    """Return what is scored at once, and what to change if that does not fit."""
    what = f"scoring of examples of up to {max(examples.lengths)} tokens"
    return what, "add --quantization nf4, or lower --max-length"


@contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    """Make a transformers model recompute its blocks' activations inside the ``with`` block.

    The methods are called ``activation_...`` in newer versions, ``gradient_...`` in older ones.
    """
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    # The other kind would need inputs with a gradient, which a frozen base has not.
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()


class _StepRecord(transformers.TrainerCallback):
    """Times the training loop, keeps every step's figures, and stops a trial that diverges."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.steps: list[dict[str, float]] = []
        self.seconds = 0.0
        self.diverged = False
        self._start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {"step": state.global_step, "train_loss": float(logs["loss"])}
        row |= {key: float(value) for key, value in logs.items() if key in STEP_FIGURES}
        self.steps.append(row)
        self.on_step()
        # Clipping turns an infinite gradient into zeros, so the loss alone would not show it. In
        # fp16 a gradient overflows now and then: the step is skipped, and the loss scale halved.
        norm = 0.0 if args.fp16 else row.get("grad_norm", 0.0)
        if not (math.isfinite(row["train_loss"]) and math.isfinite(norm)):
            self.diverged = True
            control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start


def _copied_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of the trained parameters under PEFT's names."""
    state = adapter_init.adapter_state(model)
    return {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}


def score_adapter(base: BaseModel, adapter: Path, examples: Encoded) -> pd.DataFrame:
    """Return evidence of the adapter in a directory, attached to the base as a user would do it."""
    with quiet_libraries():
        with adapter_init.attaching(base):
            model = PeftModel.from_pretrained(base.model, adapter)
        try:
            return evaluate(model, base.tokenizer, examples, base.objective)
        finally:
            model.unload()
