"""Held-out loss over rank and learning rate on the built-in task: the basis of the search's start.

    python benchmarks/learning_rate.py [--warmup 0.3] [--seeds 2]

Trains every rank at every rate with every seed (about 15 minutes on two cores) and prints a table:
the mean held-out loss over seeds, the worst seed in brackets, and each rank's best rate in bold.
Trials are kept in --out, and the same command resumes an interrupted run.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from rankwise.engine.config import TrainingConfig
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import Trial
from rankwise.report.progress_bar import ProgressBar
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run

RANKS = (4, 8, 16, 32)
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def main() -> None:
    """Run the missing trials and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--warmup", type=float, default=TrainingConfig(epochs=1, batch_size=1).warmup_ratio
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("learning-rate-out"))
    options = parser.parse_args()
    config = SweepConfig(
        ranks=RANKS,
        seeds=options.seeds,
        learning_rate=RATES,
        out=options.out / f"warmup-{options.warmup:g}",
    )
    with ProgressBar() as progress, open_run(config, progress) as run:
        train_missing(run, options.warmup)
        print_table(run, options.warmup)


def train_missing(run: Run, warmup: float) -> None:
    """Train every rank at every rate with every seed, without the complete trials."""
    config = run.config
    trials = [
        Trial(rank=rank, seed=seed, learning_rate=rate, lora_alpha=rank)
        for seed in range(config.seeds)
        for rank in config.ranks
        for rate in RATES
    ]
    missing = [trial for trial in trials if trial.name not in run.store.trial_names()]
    run.progress.plan(len(trials) - len(missing), len(trials))
    training = TrainingConfig(
        epochs=config.epochs, batch_size=config.batch_size, warmup_ratio=warmup
    )
    engine = ReferenceEngine(
        run.base, run.encode("train"), run.encode("held_out"), training, run.progress.work
    )
    for finished in engine.train(missing):
        run.store.add(finished, {"warmup_ratio": warmup})
        run.progress.trial(finished)


def print_table(run: Run, warmup: float) -> None:
    """Print the mean and the worst held-out loss, a row for each rank."""
    trials = pd.DataFrame([asdict(trial) for trial in run.store.trials()])
    losses = trials.pivot_table(
        index="rank", columns="learning_rate", values="eval_loss", aggfunc=["mean", "max"]
    )
    table = Table(
        title=f"Held-out loss, mean over {run.config.seeds} seeds (worst seed); "
        f"warm-up {warmup:.0%} of the steps"
    )
    table.add_column("rank")
    for rate in RATES:
        table.add_column(f"{rate:g}", justify="right")
    for rank in RANKS:
        means, worst = losses["mean"].loc[rank], losses["max"].loc[rank]
        cells = [f"{means[rate]:.4f} ({worst[rate]:.4f})" for rate in RATES]
        best = RATES.index(float(means.idxmin()))
        cells[best] = f"[bold]{cells[best]} *[/bold]"
        table.add_row(str(rank), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
