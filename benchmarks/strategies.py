"""Which strategy finds a rank as good as the whole grid's, and at what share of its cost?

    python benchmarks/strategies.py [--tasks rotten-tomatoes-1000,...] [--ranks 1,2,4,8,16,32,64]
        [--seeds 3] [--strategies grid,once,ends,...] [--out DIR]
    python benchmarks/strategies.py --print benchmarks/results/strategies_from_rank_1.json

The grid trains every rank with every seed, each rank at its own learning rate. The other strategies
see only the evidence of the trials that they propose. A trial that the grid has is copied from it
with its costs, because training it again would give the same; missing trials are trained. So a
strategy's cost is what it would have cost alone. `once` has two seeds, and keeps one adapter as a
rule. Everything is kept in --out, and the same command resumes an interrupted run. Results are
written after each task; a task that --results has from the same request is not run again.

A choice is judged by its adapters, one for each seed, on the held-out split and on all examples
that no trial saw: the test split, and the training examples beyond those trained on. (Ranks of the
grid that no choice names are not scored on these.) It is compared with the grid's choice on the
seeds that both have. An undetermined strategy's choice is the rank with the lowest mean held-out
loss.

The goal: a test score at most half a point below the grid's choice, at an eighth of its seconds
where the training part is at least four times the held-out part, and a sixth elsewhere.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import rankwise

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from benchmarks.tasks import TASKS
from rankwise.decide.decision import Decision
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.lora import Adapter, read_adapter
from rankwise.report.progress_bar import ProgressBar
from rankwise.store.directory import SweepStore
from rankwise.store.records import TrialRecord, select_trials
from rankwise.strategies.config import STRATEGIES, StrategyName
from rankwise.sweeps.engines import TruncatingEngine
from rankwise.sweeps.environment import environment
from rankwise.sweeps.progress import Progress
from rankwise.sweeps.run import make_strategy, open_run, run_strategy
from rankwise.sweeps.run_context import Run
from rankwise.tasks.base import Examples
from rankwise.tasks.load import load_task

RESULTS = Path(__file__).parent / "results" / "strategies_from_rank_1.json"
FIXED = (8, 16)
ONCE_SEEDS = 2  # seeds of `once`, which is meant to be cheap: the default of a sweep
UNSEEN_EXAMPLES = 4000  # scored unseen examples: a standard error of about a third of a point
ALL_EXAMPLES = 10**9  # more examples than any task has


class CopyingEngine:
    """An engine that copies the trials of another sweep, and trains the others.

    Args:
        engine: trains the missing trials.
        source: directory of trials to copy from.
        store: store to copy trials to.
    """

    def __init__(self, engine: Engine, source: Path, store: SweepStore) -> None:
        self.engine = engine
        self.source = source
        self.store = store
        self.pack_size = engine.pack_size
        self.score = engine.score

    def train(
        self, trials: Sequence[Trial], starts: Mapping[str, Adapter] | None = None
    ) -> Generator[FinishedTrial, None, None]:
        """Yield the trials that had to be trained."""
        missing = []
        for trial in trials:
            if (self.source / trial.name).is_dir():
                shutil.copytree(self.source / trial.name, self.store.trials_directory / trial.name)
            else:
                missing.append(trial)
        yield from self.engine.train(missing, starts)


def main() -> None:
    """Run what is missing, then print all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--ranks", default="1,2,4,8,16,32,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="the grid is the first")
    results_file.add_options(parser, "strategies-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()))
        return
    chosen = [name for name in STRATEGIES if name in options.strategies.split(",")]
    results = {"tasks": results_file.earlier_tasks(options.results)}
    for name in options.tasks.split(","):
        settings = {
            **TASKS[name].settings(options.out),
            "ranks": options.ranks,
            "seeds": options.seeds,
        }
        request = {**printable(settings), "strategies": chosen}
        if results["tasks"].get(name, {}).get("request") != request:
            results["tasks"][name] = {
                "request": request,
                **run_task(options.out / name, settings, chosen),
                "environment": asdict(environment()),
            }
            results_file.write_results(results, options.results)
    show(results)


def printable(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the names of files in place of their paths."""
    files = {name: settings[name] and settings[name].name for name in ("model", "data")}
    return {**settings, **files}


def run_task(
    directory: Path, settings: dict[str, Any], strategies: Sequence[StrategyName]
) -> dict[str, Any]:
    """Run strategies on a task, the grid first; return their choices, scores and costs."""
    choices: dict[str, Any] = {}
    grid_ranks: list[dict[str, Any]] = []
    for name in strategies:
        seeds = ONCE_SEEDS if name == "once" else settings["seeds"]
        config = rankwise.SweepConfig(
            **{**settings, "seeds": seeds}, strategy=name, out=directory / name
        )
        with ProgressBar() as progress:
            progress.note(f"{directory.name}, {name}")
            run_with_copies(config, progress, directory / "grid" / "trials")
            # Nothing is left to train: this call only decides.
            decision = rankwise.sweep(config, progress=progress).decision
            with open_run(config, progress) as run:
                held_out = held_out_results(run, decision)
                chosen = choose(held_out, decision.rank)
                wanted = [chosen["rank"]]
                if name == "grid":
                    best = max(held_out, key=lambda row: np.mean(row["held_out_score"]))
                    wanted += [best["rank"], *FIXED]
                ranks = with_test_scores(run, [row for row in held_out if row["rank"] in wanted])
                trials = run.store.trials()
                sizes = [len(part) for part in (run.task.train, run.task.held_out)]
                choices[name] = {
                    "verdict": decision.verdict,
                    **choose(ranks, chosen["rank"]),
                    "trials": sum(trial.train_seconds > 0 for trial in trials),
                    "seconds": run.store.seconds_spent(),
                    "passes": passes(trials, config.batch_size, sizes[1]),
                }
        if name == "once":
            choices[name]["spent"] = seconds_by_part(trials)
        if name == "grid":
            grid_ranks = held_out
            choices |= fixed_choices(ranks, trials)
            argmax = choose(ranks, best["rank"])
            choices["argmax"] = {**choices["grid"], "verdict": "selected", **argmax}
    for choice in choices.values():
        choice.update(points_above(choice, choices["grid"]))
    for row in choices.values():
        del row["scores"]
    for row in grid_ranks:
        del row["names"]
    return {
        "settings": printable(settings),
        "examples": dict(zip(("train", "held_out"), sizes, strict=True)),
        "grid": grid_ranks,
        "choices": choices,
    }


def run_with_copies(config: rankwise.SweepConfig, progress: Progress, source: Path) -> None:
    """Run a sweep's trials, with those that ``source`` has copied from there."""
    with open_run(config, progress) as run:
        copying = CopyingEngine(run.engine.engine, source, run.store)
        engine = TruncatingEngine(copying, run.store.adapter_directory)
        run_strategy(run, make_strategy(run, run.chance_loss), engine)


def fixed_choices(
    ranks: Sequence[dict[str, Any]], trials: Sequence[TrialRecord]
) -> dict[str, dict[str, Any]]:
    """Return the choice of each fixed rank, at the cost of the grid's trials for it."""
    choices = {}
    for rank in FIXED:
        row = choose(ranks, rank)
        at_rank = select_trials(trials, rank=rank, learning_rate=row["learning_rate"])
        choices[f"always r={rank}"] = {
            "verdict": "selected",
            **row,
            "trials": len(at_rank),
            "seconds": sum(trial.seconds_spent for trial in at_rank),
        }
    return choices


def passes(trials: Sequence[TrialRecord], batch_size: int, held_out: int) -> int:
    """Return the work of trials in forward passes of an example, whatever else the machine did.

    A training step costs three forward passes of each example of its batch. Scoring costs one.
    """
    return sum(3 * batch_size * trial.step + held_out for trial in trials)


def seconds_by_part(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the seconds that `once` spent on each part."""
    healed = [trial for trial in trials if trial.starts_from is not None]
    trained = [trial for trial in trials if trial.train_seconds > 0 and trial not in healed]
    cuts = [trial for trial in trials if trial.train_seconds == 0]
    return {
        "training": sum(trial.pack_seconds / trial.pack_size for trial in trained),
        "scoring": sum(trial.eval_seconds for trial in trained),
        "scoring_cuts": sum(trial.eval_seconds for trial in cuts),
        "healing": sum(trial.seconds_spent for trial in healed),
    }


def held_out_results(run: Run, decision: Decision) -> list[dict[str, Any]]:
    """Return every rank at its chosen rate, with its held-out means for each seed."""
    rates = {row.rank: row.learning_rate for row in decision.table}
    rows = []
    for rank, rate in rates.items():
        if rate is None:
            continue
        at_rank = select_trials(run.store.trials(), rank=rank, learning_rate=rate)
        at_rank.sort(key=lambda trial: trial.seed)
        rows.append(
            {
                "rank": rank,
                "learning_rate": rate,
                "names": [trial.name for trial in at_rank],
                "seeds": [trial.seed for trial in at_rank],
                "held_out_loss": [trial.eval_loss for trial in at_rank],
                "held_out_score": [trial.eval_score for trial in at_rank],
            }
        )
    return rows


def with_test_scores(run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score the ranks' adapters on unseen examples; return the rows with their test scores."""
    from rankwise.engine.config import TrainingConfig
    from rankwise.engine.fused.engine import FusedEngine

    test = replace(run, task=replace(run.task, test=unseen_examples(run))).encode("test")
    engine = FusedEngine(run.loaded_base, test, test, TrainingConfig(epochs=1, batch_size=8))
    scored = []
    for row in rows:
        adapters = [read_adapter(run.store.adapter_directory(name)) for name in row["names"]]
        tables = engine.score(adapters)
        scored.append(
            {
                **{name: value for name, value in row.items() if name != "names"},
                "test_loss": [float(table["loss"].mean()) for table in tables],
                "test_score": [float(table["score"].mean()) for table in tables],
                "scores": np.stack([table["score"].to_numpy() for table in tables]),  # (seeds, N)
            }
        )
    return scored


def unseen_examples(run: Run) -> Examples:
    """Return the test split, and evenly spaced training examples that no trial was trained on."""
    whole = load_task(replace(run.config, train_examples=ALL_EXAMPLES)).train
    used, test = set(run.task.train.ids), run.task.test
    rows = [row for row, example_id in enumerate(whole.ids) if example_id not in used]
    step = math.ceil(
        max(1, len(rows)) / (UNSEEN_EXAMPLES - len(test))
    )  # data may be sorted by class
    rest = whole.take(rows[::step])
    return Examples(test.ids + rest.ids, test.inputs + rest.inputs, test.labels + rest.labels)


def points_above(choice: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return a choice's test score above another's, in points, and its standard error.

    Both are means over the seeds that both choices have. The standard error is over the examples;
    it does not count how much the seeds vary.
    """
    both = [seed for seed in choice["seeds"] if seed in other["seeds"]]
    own, others = (
        row["scores"][[row["seeds"].index(seed) for seed in both]] for row in (choice, other)
    )  # (S, N)
    points = 100 * (own - others).mean(axis=0)  # (N,)
    return {
        "points": float(points.mean()),
        "points_error": float(points.std(ddof=1) / math.sqrt(len(points))),
    }


def choose(ranks: Sequence[dict[str, Any]], rank: int | None) -> dict[str, Any]:
    """Return the row of the selected rank, or else that of the lowest held-out loss."""
    if rank is None:
        return dict(min(ranks, key=lambda row: np.mean(row["held_out_loss"])))
    return dict(next(row for row in ranks if row["rank"] == rank))


def goal(task: dict[str, Any]) -> float:
    """Return the share of the grid's seconds that a cheap strategy may take; 0 if unknown.

    Results of an earlier version do not have the sizes of the data.
    """
    if "examples" not in task:
        return 0.0
    return 1 / 8 if task["examples"]["train"] >= 4 * task["examples"]["held_out"] else 1 / 6


def show(results: dict[str, Any]) -> None:
    """Print a table for each task."""
    console = Console(width=130)
    for name, task in results["tasks"].items():
        settings, grid = task["settings"], task["choices"]["grid"]
        table = Table(
            title=f"{name}: {settings['train_examples']} training examples, "
            f"{settings['seeds']} seeds, margin {LOSS_MARGIN}"
        )
        for column in (
            "strategy",
            "verdict",
            "rank",
            "held-out loss above the best",
            "test score %",
            "points",
            "trials",
            "cost",
            "of the goal",
            "passes",
        ):
            table.add_column(
                column, justify="left" if column in ("strategy", "verdict") else "right"
            )
        for strategy, choice in task["choices"].items():
            # The grid has all seeds; results of an earlier version have the first ones.
            seeds = choice.get("seeds", range(len(choice["held_out_loss"])))
            lowest = min(np.mean(np.take(row["held_out_loss"], seeds)) for row in task["grid"])
            table.add_row(
                strategy,
                choice["verdict"],
                str(choice["rank"]),
                f"{np.mean(choice['held_out_loss']) - lowest:+.4f}",
                f"{100 * np.mean(choice['test_score']):.2f}",
                f"{choice['points']:+.2f} +- {choice['points_error']:.2f}",
                str(choice["trials"]),
                f"{choice['seconds'] / grid['seconds']:.1%}",
                f"{choice['seconds'] / grid['seconds'] / goal(task):.0%}" if goal(task) else "",
                f"{choice['passes'] / grid['passes']:.1%}" if "passes" in choice else "",
            )
        console.print(table)
        parts = task["choices"].get("once", {}).get("spent", {})
        for part, seconds in parts.items():
            console.print(f"once, {part.replace('_', ' ')}: {seconds / grid['seconds']:.1%}")
        if goal(task):
            console.print(
                f"Goal: -0.5 points or more, at most {goal(task):.1%} of the grid's cost."
            )
        console.print()
    console.print(
        "Losses are above the grid's best rank, and points of test score above the grid's choice, "
        "on the seeds that both have; +-: standard error over the examples. Test score: mean over "
        "the choice's seeds on unseen examples. Cost: share of the grid's seconds of training and "
        "scoring; of the goal: that share over the goal's; passes: share of its forward passes. "
        "Trials: trained adapters."
    )


if __name__ == "__main__":
    main()
