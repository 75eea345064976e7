"""The command ``rankwise analyze``."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rankwise.cli.options import Command, Output, print_json
from rankwise.escaping import terminal
from rankwise.settings import Count, FilePath, Flag, Option, Positive, Several, Share, Text, column


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(Output):
    """Arguments of `rankwise.analyze`, held to its signature by a test."""

    paths: Annotated[
        tuple[FilePath, ...],
        Several,
        Option("Files or directories of results.", metavar="PATH", positional=True),
    ]
    rank_column: Annotated[Text | None, column("ranks in a table")] = None
    seed_column: Annotated[Text | None, column("seeds")] = None
    learning_rate_column: Annotated[Text | None, column("learning rates")] = None
    example_column: Annotated[Text | None, column("ids of held-out examples")] = None
    rank_pattern: Annotated[
        Text | None,
        Option(
            r"Find ranks in the names of runs with this regular expression, such as 'r(\d+)'.",
            "columns",
            "PATTERN",
            "not used",
        ),
    ] = None
    evaluation: Annotated[
        Literal["best", "last"] | None,
        Option(
            "Evaluation of each run that counts.",
            "columns",
            unset="the best where a run kept that checkpoint, else the last",
        ),
    ] = None
    spread: Annotated[
        Literal["seeds", "examples"] | None,
        Option(
            "Source of the spread of means, as in 54.0 ± 0.4 or a column std.",
            "columns",
            unset="asked for",
        ),
    ] = None
    seeds_per_mean: Annotated[
        Count | None,
        Option(
            "Number of seeds behind each row of a table of means with a spread.",
            "columns",
            "N",
            "found by name",
        ),
    ] = None
    metric: Annotated[
        Text | None,
        Option(
            "Compare ranks by this metric.",
            "decision",
            "NAME",
            "the held-out loss, or the first metric found",
        ),
    ] = None
    higher_is_better: Annotated[
        Flag | None,
        Option(
            "Higher values of the metric are better (needed if its name leaves it open).",
            "decision",
            negative="--lower-is-better",
        ),
    ] = None
    margin: Annotated[
        Positive | None,
        Option(
            "Loss of quality that a smaller rank may cost, in units of the metric.",
            "decision",
            "X",
            "0.02 for the loss, 0.01 for shares",
        ),
    ] = None
    confidence: Annotated[
        Share, Option("Confidence of the decision, between 0 and 1.", "decision", "SHARE")
    ] = 0.95
    noise: Annotated[
        Positive | None,
        Option(
            "Standard deviation of one trial's result over seeds, if you know it.",
            "decision",
            "X",
            "estimated from the results",
        ),
    ] = None
    no_prior: Annotated[
        Flag,
        Option(
            "Judge the noise of seeds by these results alone, without what other tasks show.",
            "decision",
        ),
    ] = False
    score_margin: Annotated[
        Positive | None,
        Option(
            "Loss that the chosen rank may have in a second metric, as a share (0.01 is one "
            "percentage point).",
            "decision",
            "SHARE",
            "0.01",
        ),
    ] = None


def run(settings: Mapping[str, Any]) -> None:
    """Decide from existing results, and print the decision."""
    request = AnalyzeRequest(**settings)
    arguments = {name: value for name, value in vars(request).items() if name != "json"}
    from rankwise.analysis.analysis import analyze

    analysis = analyze(*arguments.pop("paths"), **arguments)
    for note in analysis.notes:
        print(terminal(note), file=sys.stderr)
    if request.json:
        print_json(analysis.as_dict())
        return
    from rankwise.report.decision_table import print_decision, recommendation

    print_decision(analysis.decision, score=analysis.score or "score")
    print(f"Recommended rank: {recommendation(analysis.decision)}")


COMMAND = Command(
    description="Decide which rank existing results support: a table (CSV, TSV, JSON, Parquet), "
    "also as MLflow, W&B or Optuna exports it, with a column of ranks and one or more metrics; a "
    "directory of training runs or of Ray Tune's trials; a sweep directory; results of "
    "lm-eval-harness or of PEFT's method comparison.",
    examples=(
        "analyze results.csv --metric accuracy --margin 0.01",
        "analyze runs/ --confidence 0.9 --json",
        r"analyze lm-eval-out/ --metric arc_easy/acc --rank-pattern 'r(\d+)'",
    ),
    requests=(AnalyzeRequest,),
    run=run,
)
