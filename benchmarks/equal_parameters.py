"""Attention, MLP or all linear layers, at equal parameters: where is rank spent best?

    python benchmarks/equal_parameters.py [--ranks 2,8,32] [--seeds 2] ...
    python benchmarks/equal_parameters.py --print benchmarks/results/equal_parameters.json

For each rank of all-linear, `rankwise plan` finds the rank at which attention alone, and MLP alone,
have as many parameters or just fewer. The built-in task is swept once for each, every rank at its
own learning rate, and held-out losses are printed by parameters. Every sweep is kept in --out, and
the same command resumes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rankwise

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from rankwise.formatting import figure
from rankwise.report.compare_sweeps import read_compared_sweeps
from rankwise.report.progress_bar import ProgressBar
from rankwise.sweeps.environment import environment
from rankwise.tasks import samples

RESULTS = Path(__file__).parent / "results" / "equal_parameters.json"
GROUPS = ("all-linear", "attention", "mlp")


def main() -> None:
    """Sweep what is missing, then print what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="2,8,32", help="of all-linear")
    parser.add_argument("--learning-rate", default="auto")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-examples", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=64)
    results_file.add_options(parser, "equal-parameters-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()))
        return
    names = ("learning_rate", "seeds", "train_examples", "max_length")
    settings = {name: getattr(options, name) for name in names}
    ranks = equal_ranks([int(rank) for rank in options.ranks.split(",")])
    directories = [options.out / group for group in GROUPS]
    for group, directory in zip(GROUPS, directories, strict=True):
        with ProgressBar() as progress:
            progress.note(f"{group}: ranks {', '.join(map(str, ranks[group]))}")
            config = rankwise.SweepConfig(
                **settings, ranks=ranks[group], target_modules=group, out=directory
            )
            rankwise.sweep(config, progress=progress)
    lines = dict(
        zip(GROUPS, (line.as_dict() for line in read_compared_sweeps(directories)), strict=True)
    )
    results = {
        "settings": settings,
        "environment": asdict(environment()),
        "ranks": ranks,
        "lines": lines,
    }
    results_file.write_results(results, options.results)
    show(results)


def equal_ranks(ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return each group's ranks with as many parameters as all-linear, or just fewer."""
    lora: dict[str, int] = {}  # parameters for each unit of rank
    for group in GROUPS:
        plan = rankwise.plan(
            str(samples.minilm_directory()), ranks=[1, 2], target_modules=group, task_type="SEQ_CLS"
        )
        lora[group] = plan.rows[1].params.trainable - plan.rows[0].params.trainable
    return {
        group: tuple(rank * lora["all-linear"] // lora[group] for rank in ranks) for group in GROUPS
    }


def show(results: dict[str, Any]) -> None:
    """Print a row for each number of parameters, a column for each group."""
    table = Table(title="Held-out loss (95% interval) at equal parameters", title_justify="left")
    table.add_column("trainable", justify="right")
    for group in GROUPS:
        table.add_column(group, justify="right")
    rows = {
        group: [
            next(row for row in results["lines"][group]["table"] if row["rank"] == rank)
            for rank in ranks
        ]
        for group, ranks in results["ranks"].items()
    }
    for budget in range(len(rows[GROUPS[0]])):
        at = {group: rows[group][budget] for group in GROUPS}
        cells = [
            "diverged"
            if row["loss_mean"] is None
            else f"{figure(row['loss_mean'], row['loss_ci'])} at rank {row['rank']}"
            for row in at.values()
        ]
        table.add_row(f"{at[GROUPS[0]]['trainable_params']:,}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
