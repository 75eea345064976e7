"""What it costs a rank to take its learning rate from another rank, by the law of its alpha policy.

    python benchmarks/learning_rate.py [--tasks source-1000,...] [--policies r,fixed:16] [--seeds 2]
    python benchmarks/learning_rate.py --print benchmarks/results/learning_rate.json

At a middle rank the rate is searched by factors of two, until the best lies between two others. The
other ranks take the rate that corresponds to it (`rankwise.lora.alpha.carried_rate`), and search
around it for their own best. All seeds train at all rates, and the best rate has the lowest mean.
The law costs a rank the loss at the carried rate minus the loss at its own best, which is at least
0, and above it by chance too.

Trials are kept in --out, and the same command resumes an interrupted run. Results are written after
each task and policy.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from benchmarks.tasks import TASKS
from rankwise.decide import best_learning_rate
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.engine.trial import Trial
from rankwise.lora.alpha import first_rate, parse_alpha_policy
from rankwise.report.progress_bar import ProgressBar
from rankwise.sweeps.environment import environment
from rankwise.sweeps.run import open_run
from rankwise.sweeps.run_context import Run

RESULTS = Path(__file__).parent / "results" / "learning_rate.json"
PUBLISHED = Path(__file__).parents[1] / "tests" / "data" / "published_rates.json"
POLICIES = ("r", "fixed:16", "rslora", "2r")
MOST_RATES = 8
TRAIN_EXAMPLES = 800  # at most, of every task
RANKS = (2, 8, 32, 64)  # all that may be asked for


@dataclass(frozen=True)
class Curve:
    """The held-out losses of one rank over its learning rates.

    Attributes:
        steps: doublings of the first guess, ascending, (L,).
        losses: mean over the examples, NaN where training diverged, (L, S).
    """

    rank: int
    steps: tuple[int, ...]
    losses: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """Mean over seeds at each step, (L,); infinite where a seed diverged."""
        return np.nan_to_num(self.losses.mean(1), nan=np.inf)

    @property
    def best(self) -> int:
        """The step with the lowest mean."""
        return self.steps[int(self.means.argmin())]

    def at(self, step: int) -> float:
        """Return the mean loss at a step."""
        return float(self.means[self.steps.index(step)])

    @property
    def optimum(self) -> float:
        """The step where the parabola through the best and its two neighbours is lowest."""
        middle = self.steps.index(self.best)
        if middle in (0, len(self.steps) - 1) or not np.isfinite(self.means[middle + 1]):
            return self.best
        low, here, high = self.means[middle - 1 : middle + 2]
        return self.best + 0.5 * (low - high) / (low - 2 * here + high)


def main() -> None:
    """Run what is missing, then print all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default="source-1000,telegrams-168,rotten-tomatoes-1000")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--ranks", default="2,8,32")
    parser.add_argument("--seeds", type=int, default=2)
    results_file.add_options(parser, "learning-rate-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()))
        return
    results: dict[str, Any] = {
        "environment": asdict(environment()),
        "tasks": results_file.earlier_tasks(options.results),
    }
    ranks = [int(rank) for rank in options.ranks.split(",")]
    for policy in options.policies.split(","):
        for name in options.tasks.split(","):
            curves = run_task(name, policy, ranks, options.seeds, options.out)
            results["tasks"].setdefault(name, {})[policy] = curves
            results_file.write_results(results, options.results)
    show(results)


def run_task(name: str, policy: str, ranks: Sequence[int], seeds: int, out: Path) -> dict[str, Any]:
    """Train what is missing of a task under a policy; return the losses at all rates."""
    task = TASKS[name]
    examples = min(task.train_examples, TRAIN_EXAMPLES)
    directory = out / f"{name}-{policy.replace(':', '-')}"
    config = task.sweep_config(
        out, train_examples=examples, ranks=RANKS, lora_alpha=policy, out=directory
    )
    middle = ranks[len(ranks) // 2]
    with ProgressBar() as progress, open_run(config, progress) as run:
        progress.note(f"{name}, lora_alpha {policy}")
        tables = {middle: search(run, middle, 0, seeds)}
        best = curve_of(middle, tables[middle]).best
        for rank in ranks:
            if rank != middle:
                tables[rank] = search(run, rank, best, seeds)
    return {
        "train_examples": examples,
        "searched_rank": middle,
        "cells": [
            {
                "rank": rank,
                "step": step,
                "learning_rate": float(table["learning_rate"].iloc[0]),
                "losses": losses_by_seed(table),
            }
            for rank, by_step in sorted(tables.items())
            for step, table in sorted(by_step.items())
        ],
        "first_seed": {str(rank): choices(tables[rank]) for rank in ranks},
    }


def search(run: Run, rank: int, start: int, seeds: int) -> dict[int, pd.DataFrame]:
    """Train a rank at doublings of the first guess, until the best lies between two others.

    Returns:
        The evidence at each step, of all seeds.
    """
    steps = {start - 1, start, start + 1}
    while True:
        tables = train(run, rank, sorted(steps), seeds)
        best = curve_of(rank, tables).best
        more = {best - 1, best + 1} - steps
        if not more or len(steps) >= MOST_RATES:
            return tables
        steps |= more


def train(run: Run, rank: int, steps: Sequence[int], seeds: int) -> dict[int, pd.DataFrame]:
    """Train the missing trials of a rank; return the evidence at each step."""
    alpha = parse_alpha_policy(run.config.lora_alpha)
    guess = first_rate(rank, alpha, run.task.objective.task_type)
    wanted = {
        step: [
            Trial(
                rank=rank,
                seed=seed,
                learning_rate=float(f"{guess * 2.0**step:.3g}"),
                lora_alpha=alpha.alpha(rank),
                use_rslora=alpha.use_rslora,
            )
            for seed in range(seeds)
        ]
        for step in steps
    }
    complete = set(run.store.trial_names())
    missing = [one for trials in wanted.values() for one in trials if one.name not in complete]
    run.progress.plan(len(complete), len(complete) + len(missing))
    for finished in run.engine.train(missing):
        run.store.add(finished, {})
        run.progress.trial(finished)
    evidence = run.store.evidence()
    at_rank = evidence[(evidence["rank"] == rank) & (evidence["seed"] < seeds)]
    return {
        step: at_rank[at_rank["learning_rate"] == trials[0].learning_rate]
        for step, trials in wanted.items()
    }


def losses_by_seed(table: pd.DataFrame) -> list[float | None]:
    """Return each seed's mean loss; None where it diverged."""
    means = table.groupby("seed")["loss"].mean()
    return [None if math.isnan(loss) else float(loss) for loss in means]


def choices(tables: Mapping[int, pd.DataFrame]) -> dict[str, int | None]:
    """Return the step that the first seed alone would choose, by each rule.

    A search takes the smallest rate within one standard error of the best.
    """
    first = {step: table[table["seed"] == 0] for step, table in tables.items()}
    lowest = min(first, key=lambda step: losses_by_seed(first[step])[0] or math.inf)
    rate = best_learning_rate(pd.concat(first.values()))
    rates = {float(table["learning_rate"].iloc[0]): step for step, table in first.items()}
    return {"lowest": lowest, "one_error": None if rate is None else rates[rate]}


def curve_of(rank: int, tables: Mapping[int, pd.DataFrame]) -> Curve:
    """Return the losses of a rank over its steps."""
    steps = tuple(sorted(tables))
    losses = [losses_by_seed(tables[step]) for step in steps]
    return Curve(rank, steps, np.array(losses, dtype=float))


def read_curves(content: Mapping[str, Any]) -> dict[int, Curve]:
    """Return the curves of all ranks from a task's results under one policy."""
    curves = {}
    for rank in sorted({cell["rank"] for cell in content["cells"]}):
        cells = [cell for cell in content["cells"] if cell["rank"] == rank]
        steps = tuple(cell["step"] for cell in cells)
        losses = np.array([cell["losses"] for cell in cells], dtype=float)
        curves[rank] = Curve(rank, steps, losses)
    return curves


def show(results: Mapping[str, Any]) -> None:
    """Print what the law costs each rank, the exponents, and how the first seed chooses."""
    console = Console(width=120)
    runs = [
        (name, policy, content, read_curves(content))
        for name, by_policy in results["tasks"].items()
        for policy, content in by_policy.items()
    ]
    ranks = sorted({rank for _, _, _, curves in runs for rank in curves})
    table = Table(
        title="Loss at the carried rate minus loss at the rank's own best, in units of the loss "
        f"(margin {LOSS_MARGIN:g}); in brackets, the own best rate over the carried one"
    )
    for header in ("task", "lora_alpha", "seeds", "searched", *(f"r = {one}" for one in ranks)):
        table.add_column(header)
    for name, policy, content, curves in runs:
        searched = content["searched_rank"]
        start = curves[searched].best
        cells = []
        for rank in ranks:
            cells.append("" if rank not in curves else cost_cell(curves[rank], start))
        seeds = str(curves[searched].losses.shape[1])
        table.add_row(name, policy, seeds, str(searched), *cells)
    console.print(table)
    show_exponents(console, runs)
    show_choices(console, runs)
    show_published(console)


def cost_cell(curve: Curve, carried: int) -> str:
    """Return what the carried step costs a rank, and how far its own best is from it."""
    cost = curve.at(carried) - curve.at(curve.best)
    return f"{cost:.4f} (x {2.0 ** (curve.best - carried):g})"


def show_exponents(console: Console, runs: Sequence[tuple[Any, ...]]) -> None:
    """Print the power of the rank that fits the best rates of each policy, beside the law's.

    The best rate of a rank is that of a parabola through its three lowest rates. Each task has a
    level of its own; the error is that of least squares.
    """
    table = Table(title="The best rate falls as rank ** -p")
    for header in ("lora_alpha", "p of the law", "p that fits", "standard error", "ranks"):
        table.add_column(header, justify="right")
    for policy in dict.fromkeys(policy for _, policy, _, _ in runs):
        law = parse_alpha_policy(policy).rate_exponent
        x, y, count = [], [], 0
        for _, other, _, curves in runs:
            if other == policy and len(curves) > 1:
                # Steps are counted from the law's rate, so their slope is what the law misses.
                at = np.log2(list(curves))
                optima = np.array([curve.optimum for curve in curves.values()])
                x += list(at - at.mean())
                y += list(optima - optima.mean())
                count += 1
        if len(x) - count < 2:
            continue
        slope = float(np.dot(x, y) / np.dot(x, x))
        residual = np.array(y) - slope * np.array(x)
        error = math.sqrt(residual @ residual / (len(x) - count - 1) / np.dot(x, x))
        table.add_row(policy, f"{law:g}", f"{law - slope:.2f}", f"{error:.2f}", str(len(x)))
    console.print(table)


def show_choices(console: Console, runs: Sequence[tuple[Any, ...]]) -> None:
    """Print how the rate that the first seed chooses does with the other seeds."""
    behind: dict[str, list[float]] = {"lowest": [], "one_error": []}
    for _, _, content, curves in runs:
        for rank, curve in curves.items():
            if curve.losses.shape[1] < 2:
                continue
            others = np.nan_to_num(curve.losses[:, 1:], nan=np.inf).mean(1)  # (L,)
            for rule, step in content["first_seed"][str(rank)].items():
                if step is not None:
                    behind[rule].append(others[curve.steps.index(step)] - others.min())
    if not behind["lowest"]:
        return
    table = Table(title="Loss of the other seeds at the rate that the first chose, above their own")
    for header in ("the first seed's choice", "mean", "largest", "beyond the margin"):
        table.add_column(header, justify="right")
    names = {"lowest": "lowest mean", "one_error": "smallest within one standard error"}
    for rule, losses in behind.items():
        beyond = f"{sum(loss > LOSS_MARGIN for loss in losses)} of {len(losses)}"
        table.add_row(names[rule], f"{np.mean(losses):.4f}", f"{max(losses):.4f}", beyond)
    console.print(table)


def show_published(console: Console) -> None:
    """Print what a middle rank's best rate costs the other ranks of published models.

    Their ``lora_alpha`` is fixed, so the law carries the rate as it is. Rates that were not run at
    the other rank, or diverged, are left out.
    """
    published = json.loads(PUBLISHED.read_text())["models"]
    costs: dict[str, list[float]] = {"4 and more": [], "below 4": []}
    alike = 0
    for rows in published.values():
        losses: dict[int, dict[float, float]] = {}
        for rank, rate, loss in rows:
            losses.setdefault(rank, {})[rate] = loss
        best = {rank: min(tried, key=tried.__getitem__) for rank, tried in losses.items()}
        alike += len(set(best.values())) == 1
        middle = sorted(losses)[len(losses) // 2]
        for rank, tried in losses.items():
            if rank != middle and best[middle] in tried:
                where = "4 and more" if rank >= 4 else "below 4"
                costs[where].append(tried[best[middle]] - min(tried.values()))
    table = Table(
        title=f"Published models at a fixed lora_alpha: loss at the middle rank's best rate above "
        f"the own best, nats; the same best rate at all ranks in {alike} of {len(published)}"
    )
    for header in ("ranks", "pairs", "mean", "largest"):
        table.add_column(header, justify="right")
    for where, behind in costs.items():
        table.add_row(where, str(len(behind)), f"{np.mean(behind):.5f}", f"{max(behind):.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
