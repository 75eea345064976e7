"""Speed and memory of the fused engine, compared with PEFT and transformers' Trainer.

    python benchmarks/engine.py [--rounds 2] [--sentences 2000] [--batch 32] [--skip-growth]
                                [--skip-comparison] [--skip-sweep]

MiniLM-L6 on Rotten Tomatoes: one epoch of 2,000 sentences in batches of 32, all linear layers,
r = 8, AdamW, fp32. All setups take turns, and every figure is the median over rounds (about
20 minutes on two cores, 4 of them for how cost grows). At the end a whole sweep of eight trials
runs as a process, beside the loop that tutorials write (four minutes). Run nothing else meanwhile:
a busy core shows in every ratio.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks.whole_sweep import print_whole_sweep
from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.optimizer import step_all
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import Trial
from rankwise.models.base_model import BaseModel, load_base
from rankwise.models.compat import quiet_libraries
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task

BATCH = 32
TRAINING = TrainingConfig(epochs=1, batch_size=BATCH)
LAYERS = ((384, 384), (384, 1536), (1536, 384))  # (d_in, d_out) of MiniLM-L6's linear layers
COUNTS = (4, 1, 1)  # of each in a block
BLOCKS = 6
LEFT_OUT = 1 / BLOCKS
"""Share of the base that computes one token per sequence only: the last block."""


@dataclass
class Setup:
    """A setup that trains adapters, and the seconds of its rounds."""

    name: str
    ranks: tuple[int, ...]
    run: Callable[[], float]
    seconds: list[float]

    @property
    def per_trial(self) -> float:
        """Median over rounds, in seconds per trial."""
        return statistics.median(self.seconds) / len(self.ranks)


def trial(rank: int, seed: int = 0) -> Trial:
    """Return a trial at a rate at which every rank learns."""
    return Trial(rank=rank, seed=seed, learning_rate=1e-3, lora_alpha=rank)


def useful_flop(tokens: int, rank: int) -> int:
    """Count the work of a step: base forward, gradient of its activations, three adapter passes.

    The first block's query, key and value need no gradient of their input. Attention, norms and the
    head are not counted. The count is the same for every setup, though the fused engine
    leaves out `LEFT_OUT` of it.
    """
    base = BLOCKS * sum(
        count * d_in * d_out for count, (d_in, d_out) in zip(COUNTS, LAYERS, strict=True)
    )
    adapters = BLOCKS * sum(
        count * rank * (d_in + d_out) for count, (d_in, d_out) in zip(COUNTS, LAYERS, strict=True)
    )
    return tokens * 2 * (2 * base - 3 * 384 * 384 + 3 * adapters)


def sgemm_peak(tokens: int) -> float:
    """Measure fp32 matrix products at the layers' sizes, weighted as in a step, in FLOP/s."""
    flop = seconds = 0.0
    for count, (d_in, d_out) in zip(COUNTS, LAYERS, strict=True):
        x, weight, y = (
            torch.randn(tokens, d_in),
            torch.randn(d_out, d_in),
            torch.empty(tokens, d_out),
        )
        times = []
        for _ in range(30):
            start = time.perf_counter()
            torch.mm(x, weight.t(), out=y)
            times.append(time.perf_counter() - start)
        flop += count * 2.0 * tokens * d_in * d_out
        seconds += count * statistics.median(times)
    return flop / seconds


def with_trainer(
    examples: Encoded, tokenizer: Any, batch: int, dropout: float, sampling: str
) -> float:
    """Train r = 8 as tutorials write it; return the seconds of ``trainer.train()``."""
    settings: dict[str, Any] = (
        {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        samples.minilm_directory(), num_labels=2, **settings
    )
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=8,
            lora_alpha=8,
            lora_dropout=dropout,
            target_modules="all-linear",
        ),
    )
    rows = [
        {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": label}
        for tokens, label in zip(examples.input_ids, examples.labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            learning_rate=1e-3,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            train_sampling_strategy=sampling,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=adapted,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        return float(trainer.train().metrics["train_runtime"])


def make_setups(base: BaseModel, examples: Encoded, config: TrainingConfig) -> list[Setup]:
    """Return the setups to compare."""
    few = Encoded(examples.ids[:32], examples.input_ids[:32], examples.labels[:32])

    def fused(ranks: Sequence[int]) -> float:
        engine = FusedEngine(base, examples, few, config, pack_size=len(ranks))
        return next(
            iter(engine.train([trial(rank, seed) for seed, rank in enumerate(ranks)]))
        ).pack_seconds

    def reference() -> float:
        return next(
            iter(ReferenceEngine(base, examples, few, config).train([trial(8)]))
        ).train_seconds

    def tutorial(dropout: float, sampling: str) -> float:
        return with_trainer(examples, base.tokenizer, config.batch_size, dropout, sampling)

    mixed, eight = (4, 8, 16, 32), (8,) * 8
    return [
        Setup("PEFT + Trainer, dropout 0.1", (8,), lambda: tutorial(0.1, "random"), []),
        Setup("PEFT + Trainer, dropout 0", (8,), lambda: tutorial(0.0, "random"), []),
        Setup("PEFT + Trainer, length groups", (8,), lambda: tutorial(0.0, "group_by_length"), []),
        Setup("reference engine", (8,), reference, []),
        Setup("fused, alone", (8,), lambda: fused((8,)), []),
        Setup("fused, 2 at once, a CPU's default", (8, 8), lambda: fused((8, 8)), []),
        Setup("fused, pack of 4, 8, 16, 32", mixed, lambda: fused(mixed), []),
        Setup("fused, pack of 8 x r = 8", eight, lambda: fused(eight), []),
    ]


def compare(
    base: BaseModel, examples: Encoded, config: TrainingConfig, rounds: int, console: Console
) -> None:
    """Let all setups take turns and print the table."""
    setups = make_setups(base, examples, config)
    peaks = []
    tokens = sum(examples.lengths)
    for _ in range(rounds):
        for setup in setups:
            peaks.append(sgemm_peak(tokens * config.batch_size // len(examples)))
            setup.seconds.append(setup.run())
    peak = statistics.median(peaks)
    table = Table(
        title=f"{len(examples)} sentences, {tokens} tokens, batches of {config.batch_size}; "
        f"medians of {rounds} rounds"
    )
    for name in (
        "setup",
        "s per trial",
        "tokens/s",
        "useful GFLOP/s",
        "of sgemm",
        "done of sgemm",
        "against dropout 0.1",
        "dropout 0",
    ):
        table.add_column(name, justify="left" if name == "setup" else "right")
    for setup in setups:
        flop = sum(useful_flop(tokens, rank) for rank in setup.ranks) / len(setup.ranks)
        rate = flop / setup.per_trial
        table.add_row(
            setup.name,
            f"{setup.per_trial:.1f}",
            f"{tokens / setup.per_trial:,.0f}",
            f"{rate / 1e9:.0f}",
            f"{rate / peak:.0%}",
            f"{rate / peak * (1 - LEFT_OUT if setup.name.startswith('fused') else 1):.0%}",
            *(f"{other.per_trial / setup.per_trial:.2f} x" for other in setups[:2]),
        )
    console.print(table)
    console.print(
        f"sgemm at the layers' sizes: {peak / 1e9:.0f} GFLOP/s "
        f"({min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f})"
    )


def step_cost(
    base: BaseModel, examples: Encoded, config: TrainingConfig, ranks: Sequence[int], steps: int
) -> tuple[float, int]:
    """Return a pack's median seconds per step in one pass, and peak bytes on long sentences."""
    engine = FusedEngine(base, examples, examples, config)
    states = [
        TrainingState(trial(r, s), base, saved_modules(base), config, examples)
        for s, r in enumerate(ranks)
    ]
    with packed_model(base) as model:

        def step() -> None:
            batches = [state.batch(state.started) for state in states]
            step_all(states, engine.loop.forward_backward(model, states, batches))

        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        longest = sorted(range(len(examples)), key=examples.lengths.__getitem__)[
            -config.batch_size :
        ]

        def longest_step() -> None:
            batches = [longest] * len(states)
            step_all(states, engine.loop.forward_backward(model, states, batches))

        kept = [tensor for state in states for tensor in state.tensors()]
        peak = peak_live_bytes(
            longest_step, [*base.model.parameters(), *base.model.buffers(), *kept]
        )
    return statistics.median(times[1:]), peak


def growth(base: BaseModel, examples: Encoded, console: Console) -> None:
    """Print how time and memory of a step grow with trials, length and rank."""
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    table = Table(
        title=f"A pack's step, r = 8, batches of {BATCH} sentences; base {weights / 2**20:.0f} MiB"
    )
    for name in (
        "trials",
        "ms per step and trial",
        "peak of live tensors, MiB",
        "MiB per trial without the base",
    ):
        table.add_column(name, justify="right")
    for count in (1, 2, 4, 8, 16):
        seconds, peak = step_cost(base, examples, TRAINING, (8,) * count, 5)
        own = (peak - weights) / count
        table.add_row(
            str(count), f"{seconds / count * 1e3:.0f}", f"{peak / 2**20:.0f}", f"{own / 2**20:.0f}"
        )
    console.print(table)

    table = Table(title="A step alone on 8 sequences of equal length, r = 8")
    for name in ("tokens per sequence", "ms per step", "us per token", "useful GFLOP/s"):
        table.add_column(name, justify="right")
    eight = replace(TRAINING, batch_size=8)
    for length in (16, 32, 64, 128, 256, 512):
        sequences = [
            [101 + (7 * row + place) % 20000 for place in range(length)] for row in range(64)
        ]
        same = Encoded(tuple(range(64)), sequences, tuple(row % 2 for row in range(64)))
        seconds, _ = step_cost(base, same, eight, (8,), 5)
        tokens = 8 * length
        rate = useful_flop(tokens, 8) / seconds
        table.add_row(
            str(length),
            f"{seconds * 1e3:.0f}",
            f"{seconds / tokens * 1e6:.0f}",
            f"{rate / 1e9:.0f}",
        )
    console.print(table)

    table = Table(title=f"A step alone, batches of {BATCH} sentences")
    for name in ("rank", "ms per step", "peak of live tensors, MiB"):
        table.add_column(name, justify="right")
    for rank in (4, 8, 16, 32, 64, 128, 256):
        seconds, peak = step_cost(base, examples, TRAINING, (rank,), 8)
        table.add_row(str(rank), f"{seconds * 1e3:.0f}", f"{peak / 2**20:.0f}")
    console.print(table)


def main() -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--skip-growth", action="store_true")
    parser.add_argument("--skip-comparison", action="store_true")
    parser.add_argument("--skip-sweep", action="store_true")
    options = parser.parse_args()
    console = Console(width=130)
    task = load_task(SweepConfig(train_examples=options.sentences))
    with quiet_libraries():
        base = load_base(str(samples.minilm_directory()), task.objective, ["all-linear"], [8])
        examples, _ = encode(task.train, base.tokenizer, 128)
        if not options.skip_comparison:
            compare(
                base, examples, replace(TRAINING, batch_size=options.batch), options.rounds, console
            )
        if not options.skip_growth:
            growth(base, examples, console)
    if not options.skip_sweep:
        print_whole_sweep(console)


if __name__ == "__main__":
    main()
