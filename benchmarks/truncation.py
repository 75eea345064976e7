"""Energy and held-out loss of truncated adapters: energy does not predict the loss.

    python benchmarks/truncation.py

Trains two adapters on the built-in task (about a minute on two cores), truncates each to lower
ranks, and prints a table. Trials are kept in --out; the same command resumes.
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rankwise.engine.config import TrainingConfig
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.engine.trial import Trial
from rankwise.lora import read_adapter, spectrum, truncate, write_adapter
from rankwise.report.progress_bar import ProgressBar
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run

CASES = {  # name: (rank, learning rate, target modules)
    "query-value": (8, 2e-3, ("query", "value")),
    "all-linear": (32, 5e-4, ("all-linear",)),
}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("truncation-out"))
    options = parser.parse_args()
    table = Table(title="Truncations of a trained adapter", title_justify="left")
    for name in ("trained", "truncated to", "energy", "held-out loss", "accuracy"):
        table.add_column(name, justify="right")
    for name, (rank, rate, targets) in CASES.items():
        config = SweepConfig(
            ranks=(rank,),
            seeds=1,
            learning_rate=(rate,),
            target_modules=targets,
            out=options.out / name,
        )
        with ProgressBar() as progress, open_run(config, progress) as run:
            trained = train(run, Trial(rank=rank, seed=0, learning_rate=rate, lora_alpha=rank))
            add_rows(table, run, trained, f"{name}, r={rank}")
    Console().print(table)


def train(run: Run, trial: Trial) -> Path:
    """Return the directory of a trial's adapter, trained if it is not there yet."""
    if trial.name not in run.store.trial_names():
        run.progress.plan(0, 1)
        training = TrainingConfig(epochs=run.config.epochs, batch_size=run.config.batch_size)
        engine = ReferenceEngine(
            run.loaded_base,
            run.encode("train"),
            run.encode("held_out"),
            training,
            run.progress.work,
        )
        for finished in engine.train([trial]):
            run.store.add(finished, {})
            run.progress.trial(finished)
    return run.store.adapter_directory(trial.name)


def add_rows(table: Table, run: Run, trained: Path, name: str) -> None:
    """Truncate an adapter to ranks 1, 2, 4, ... and score each on the held-out examples."""
    found = spectrum(read_adapter(trained))
    held_out = run.encode("held_out")
    ranks = [2**power for power in range(found.largest_rank.bit_length())]
    for rank in ranks:
        with tempfile.TemporaryDirectory() as scratch:
            write_adapter(truncate(found, rank), Path(scratch) / "truncated")
            evidence = score_adapter(run.loaded_base, Path(scratch) / "truncated", held_out)
        energy = found.energy_at({layer.pair.name: rank for layer in found.layers})
        loss, accuracy = evidence["loss"].mean(), evidence["score"].mean()
        table.add_row(
            name,
            str(rank),
            f"{energy:.1%}",
            f"{loss:.4f}",
            f"{accuracy:.1%}",
            end_section=rank == ranks[-1],
        )


if __name__ == "__main__":
    main()
