"""Is a task short of rank, of a better learning rate, or of steps? What each gains, on eight tasks.

    python benchmarks/rank_or_rate.py [--tasks genre-800,...] [--minutes 40] [--out DIR]
    python benchmarks/rank_or_rate.py --print benchmarks/results/rank_or_rate.json

At rank 8 the learning rate is searched with one seed by factors of two from the first guess
(`rankwise.lora.alpha.first_rate`), until the best lies between two others. The best rate is carried
to the other ranks by the law (`carried_rate`). Ranks 8 and 64 are also trained with twice the
steps, and on telegrams ranks 8, 16 and 64 with two and four times. All but the search has two
seeds. A gain is the fall of the held-out loss, paired over examples and seeds; its standard error
covers both.

Trials are kept in --out, and the same command resumes an interrupted run. Results are written after
each task; with --minutes, what is trained by then is written, and the rest is left to a later run.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from benchmarks.tasks import TASKS
from rankwise.decide import best_learning_rate
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.decide.needs import FurtherTrial, find_needs, short_of
from rankwise.decide.pairwise import Comparison
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import carried_rate, first_rate, parse_alpha_policy
from rankwise.report.progress_bar import ProgressBar
from rankwise.store.trial_files import read_trial_evidence
from rankwise.sweeps.environment import environment
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run

RESULTS = Path(__file__).parent / "results" / "rank_or_rate.json"
ALPHA = parse_alpha_policy("r")
SEEDS = 2
CONFIDENCE = 0.95
SMALL, RANK, LARGE = 2, 8, 64
MOST_RATES = 8
LEARNT = 0.99  # share of the chance-level loss below which a trial has learnt something
CHEAPEST_FIRST = (
    "kind-800",
    "genre-800",
    "balance-800",
    "rotten-tomatoes-1000",
    "source-1000",
    "telegrams-168",
    "imdb-1500",
    "rotten-tomatoes-4000",
)


class Cell(NamedTuple):
    """What is trained with every seed; ``steps`` is a multiple of those of one epoch."""

    rank: int
    learning_rate: float
    steps: int = 1

    def trial(self, seed: int) -> Trial:
        """Return the cell's trial of a seed."""
        return Trial(
            rank=self.rank,
            seed=seed,
            learning_rate=self.learning_rate,
            lora_alpha=ALPHA.alpha(self.rank),
            share_of_steps=None if self.steps == 1 else float(self.steps),
        )


@dataclass(frozen=True)
class Gain:
    """How much lower (positive) the held-out loss of one cell is than that of another."""

    of: str
    gain: float
    error: float


def main() -> None:
    """Run what is missing, then print all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(CHEAPEST_FIRST))
    parser.add_argument("--minutes", type=float, default=1e6, help="start no trial after these")
    results_file.add_options(parser, "rank-or-rate-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()))
        return
    results = {"tasks": results_file.earlier_tasks(options.results)}
    end = time.monotonic() + 60 * options.minutes
    for name in options.tasks.split(","):
        content = run_task(name, options.out, end)
        if content is None:  # the search for its rate is not complete
            continue
        results["tasks"][name] = content
        results_file.write_results(results, options.results)
    show(results)


def run_task(name: str, out: Path, end: float) -> dict[str, Any] | None:
    """Train what is missing of a task until the time is over; return its cells and gains."""
    task = TASKS[name]
    config = task.sweep_config(out, ranks=(SMALL, RANK, LARGE), seeds=SEEDS, out=out / name)
    with ProgressBar() as progress, open_run(config, progress) as run:
        progress.note(name)
        guess = _round(first_rate(RANK, ALPHA, run.task.objective.task_type))
        cells = search(run, guess, end)
        if cells is None:
            return None
        best = best_learning_rate(pd.concat(cells.values(), ignore_index=True))
        assert best is not None  # the search goes down until a rate does not diverge
        again = (best, _round(best / 2), guess)
        cells |= train(run, [cell for cell in cells if cell.learning_rate in again], SEEDS, end)
        further = further_cells(best, steps_too=task.is_language_model)
        cells |= train(run, further, SEEDS, end)
        is_complete = set(further) <= set(cells)
        usable = {cell: table for cell, table in cells.items() if not table["diverged"].any()}
        examples = len(run.task.held_out)
        unit = run.task.objective.unit
    losses = {
        cell: table.pivot(index="seed", columns="example_id", values="loss").to_numpy()
        for cell, table in usable.items()
    }
    return {
        "complete": is_complete,
        "question": task.question,
        "train_examples": task.train_examples,
        "held_out_examples": examples,
        "unit": unit,
        "first_rate": guess,
        "best_rate": best,
        "cells": [
            {
                **cell._asdict(),
                "loss": float(losses[cell].mean()),
                "losses": losses[cell].mean(1).tolist(),
                "score": float(table["score"].mean()),
            }
            for cell, table in usable.items()
        ],
        "gains": [asdict(gain) for gain in gains(losses, guess, best)],
        **verdict(usable, best),
        "environment": asdict(environment()),
    }


def search(run: Run, guess: float, end: float) -> dict[Cell, pd.DataFrame] | None:
    """Try rates at the searched rank with one seed until the best lies between two others.

    Returns None if the time is over before.
    """
    steps = {-1, 0, 1}
    while True:
        rates = {step: _round(guess * 2.0**step) for step in sorted(steps)}
        tried = train(run, [Cell(RANK, rate) for rate in rates.values()], 1, end)
        if len(tried) < len(rates):
            return None
        best = best_learning_rate(pd.concat(tried.values(), ignore_index=True))
        middle = min(steps) if best is None else next(s for s in steps if rates[s] == best)
        more = {middle - 1, middle + 1} - steps
        if best is not None and not _learns(run, tried[Cell(RANK, best)]):
            more = {min(steps) - 1, max(steps) + 1}
        if not more or len(steps) >= MOST_RATES:
            return tried
        steps |= more


def _learns(run: Run, evidence: pd.DataFrame) -> bool:
    """Return whether a trial's loss is clearly below that of guessing."""
    chance = run.chance_loss
    return chance is None or bool(evidence["loss"].mean() < LEARNT * np.mean(chance))


def further_cells(rate: float, *, steps_too: bool) -> list[Cell]:
    """Return the cells that the search does not train, at rates carried from its rank."""

    def at(rank: int, steps: int = 1) -> Cell:
        return Cell(rank, _round(carried_rate(rate, RANK, rank, ALPHA)), steps)

    cells = [at(LARGE), at(RANK, 2), at(LARGE, 2), at(SMALL)]
    if steps_too:
        cells += [at(RANK, 4), at(LARGE, 4), at(16), at(16, 2), at(16, 4)]
    return cells


def train(run: Run, cells: Sequence[Cell], seeds: int, end: float) -> dict[Cell, pd.DataFrame]:
    """Train the missing trials of some cells until the time is over.

    Returns the evidence of each cell that is complete.
    """
    trials = [cell.trial(seed) for cell in cells for seed in range(seeds)]
    complete = set(run.store.trial_names())
    missing = [trial for trial in trials if trial.name not in complete]
    run.progress.plan(len(complete), len(complete) + len(missing))
    while missing and time.monotonic() < end:
        pack = missing[: run.engine.pack_size]
        for finished in run.engine.train(pack):
            run.store.add(finished, {})
            run.progress.trial(finished)
        missing = missing[len(pack) :]
    left = {trial.name for trial in missing}
    return {
        cell: pd.concat(
            read_trial_evidence(run.store.trials_directory / cell.trial(seed).name)
            for seed in range(seeds)
        )
        for cell in cells
        if not any(cell.trial(seed).name in left for seed in range(seeds))
    }


def gains(losses: Mapping[Cell, np.ndarray], guess: float, best: float) -> list[Gain]:
    """Return what rank, rate and steps gain, for the cells that were trained and did not diverge.

    Args:
        losses: held-out losses of each cell, (S, N).
        guess: the rate that the search started from.
        best: the best rate of the searched rank.
    """
    keys = {cell: number for number, cell in enumerate(losses)}
    compared = Comparison(
        {number: losses[cell] for cell, number in keys.items()},
        {number: range(len(losses[cell])) for cell, number in keys.items()},
    )
    cells = {(cell.rank, cell.steps): cell for cell in losses if cell.rank != RANK}
    cells |= {(RANK, cell.steps): cell for cell in losses if cell == (RANK, best, cell.steps)}
    base = cells.get((RANK, 1))
    pairs: list[tuple[str, Cell | None, Cell | None]] = [
        ("best rate over half of it", _at_rate(losses, best / 2), base),
        ("best rate over the first guess", _at_rate(losses, guess), base),
    ]
    for (rank, steps), cell in cells.items():
        if steps == 1 and rank > RANK:
            pairs.append((f"rank {rank} over rank {RANK}", base, cell))
        if steps == 1 and rank < RANK:
            pairs.append((f"rank {RANK} over rank {rank}", cell, base))
        if steps > 1:
            pairs.append((f"{steps} x steps at rank {rank}", cells.get((rank, 1)), cell))
        if steps > 1 and rank > RANK:
            smaller = cells.get((RANK, steps))
            pairs.append((f"rank {rank} over rank {RANK} at {steps} x steps", smaller, cell))
    found = []
    for name, before, after in pairs:
        if before is not None and after is not None and before != after:
            difference = compared.difference(keys[before], keys[after])
            spread = difference.spread
            error = float(np.sqrt(spread.seeds + spread.examples))
            found.append(Gain(name, difference.mean, error))
    return found


def verdict(cells: Mapping[Cell, pd.DataFrame], best: float) -> dict[str, Any]:
    """Return what the task is short of by the rules of `rankwise.decide.needs`."""
    swept = pd.concat(table for cell, table in cells.items() if cell.steps == 1)
    results = read_rank_results(swept.reset_index(drop=True))
    longer, further = cells.get(Cell(RANK, best, 2)), None
    if longer is not None:
        (one,) = read_rank_results(longer.reset_index(drop=True))
        further = FurtherTrial(one, steps=2, sweep_steps=1)
    needs = find_needs(results, RANK, LOSS_MARGIN, CONFIDENCE, further=further)
    return {"short_of": short_of(needs), "needs": {need.name: need.state for need in needs}}


def _at_rate(losses: Mapping[Cell, np.ndarray], rate: float) -> Cell | None:
    """Return the cell of the searched rank at a rate, up to rounding."""
    near = (cell for cell in losses if cell.rank == RANK and cell.steps == 1)
    return next((cell for cell in near if abs(cell.learning_rate / rate - 1) < 0.01), None)


def _round(rate: float) -> float:
    """Round to three digits, as the names of trials do."""
    return float(f"{rate:.3g}")


def show(results: dict[str, Any]) -> None:
    """Print each task's gains side by side, then the cells of each task."""
    console = Console(width=130)
    tasks = results["tasks"]
    columns = {
        "rate": ("best rate over half of it", "best rate over the first guess"),
        "rank": (f"rank {RANK} over rank {SMALL}", f"rank {LARGE} over rank {RANK}"),
        "steps": (f"2 x steps at rank {RANK}", f"2 x steps at rank {LARGE}"),
    }
    names = [name for group in columns.values() for name in group]
    table = Table(title="Fall of the held-out loss, nats, with its standard error")
    table.add_column("task")
    for name in (*names, "short of"):
        table.add_column(name, justify="right")
    for task, content in tasks.items():
        by_name = {gain["of"]: gain for gain in content["gains"]}
        table.add_row(task, *(_cell(by_name.get(name)) for name in names), content["short_of"])
    console.print(table)
    for task, content in tasks.items():
        if not content["complete"]:
            console.print(f"{task}: not complete, the same command trains the rest")
        further = [gain for gain in content["gains"] if gain["of"] not in names]
        table = Table(title=f"{task}: {content['question']}")
        for column in ("rank", "learning rate", "steps", "held-out loss", "seeds", "score"):
            table.add_column(column, justify="right")
        for cell in sorted(
            content["cells"], key=lambda one: (one["steps"], one["rank"], one["learning_rate"])
        ):
            table.add_row(
                str(cell["rank"]),
                f"{cell['learning_rate']:g}",
                f"{cell['steps']} x",
                f"{cell['loss']:.4f}",
                ", ".join(f"{loss:.4f}" for loss in cell["losses"]),
                f"{cell['score']:.4f}",
            )
        console.print(table)
        for gain in further:
            console.print(f"{gain['of']}: {_cell(gain)}")


def _cell(gain: dict[str, Any] | None) -> str:
    return "" if gain is None else f"{gain['gain']:+.4f} ± {gain['error']:.4f}"


if __name__ == "__main__":
    main()
