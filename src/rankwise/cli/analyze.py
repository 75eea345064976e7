"""The command ``rankwise analyze``."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, Output
from rankwise.settings import (
    DECISION,
    FilePath,
    Flag,
    Option,
    Positive,
    Several,
    Share,
    Text,
    column,
)


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(Output):
    """Results of others, and how to decide from them; a test holds the names to `rankwise.analyze`."""

    paths: Annotated[
        tuple[FilePath, ...],
        Several,
        Option("Files and directories with results.", metavar="PATH", positional=True),
    ]
    rank_column: Annotated[Text | None, column("ranks in a table")] = None
    seed_column: Annotated[Text | None, column("seeds")] = None
    learning_rate_column: Annotated[Text | None, column("learning rates")] = None
    example_column: Annotated[Text | None, column("ids of held-out examples")] = None
    metric: Annotated[
        Text | None,
        Option(
            "Compare ranks by this metric.",
            DECISION,
            "NAME",
            "the held-out loss, or the first metric found",
        ),
    ] = None
    higher_is_better: Annotated[
        Flag | None,
        Option(
            "Higher values of the metric are better; for a metric whose name does not tell.",
            DECISION,
            negative="--lower-is-better",
        ),
    ] = None
    margin: Annotated[
        Positive | None,
        Option(
            "Loss of quality that a smaller rank may cost, in units of the metric.",
            DECISION,
            "X",
            "0.02 for the loss, 0.01 for shares",
        ),
    ] = None
    confidence: Annotated[
        Share, Option("Confidence of the decision, between 0 and 1.", DECISION, "SHARE")
    ] = 0.95
    noise: Annotated[
        Positive | None,
        Option(
            "Standard deviation of one trial's result over seeds, if you know it.",
            DECISION,
            "X",
            "estimated from the results",
        ),
    ] = None
    score_margin: Annotated[
        Positive | None,
        Option(
            "Loss of a second metric that the chosen rank may have, as a share (one percentage "
            "point is 0.01).",
            DECISION,
            "SHARE",
            "0.01",
        ),
    ] = None


def run(settings: Mapping[str, Any]) -> None:
    """Decide from others' results, and print the decision."""
    asked = AnalyzeRequest(**settings)
    arguments = {
        name: getattr(asked, name) for name in vars(asked) if name not in ("paths", "json")
    }
    from rankwise.analysis.analysis import analyze

    found = analyze(*asked.paths, **arguments)
    for note in found.notes:
        print(note, file=sys.stderr)
    if asked.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.decision_table import print_decision

    print_decision(found.decision, score=found.score or "score")
    rank = found.decision.rank
    print(f"Rank supported: {rank if rank is not None else 'undetermined'}")


COMMAND = Command(
    description="Decide which rank the results of others support: a table (CSV, TSV, JSON lines, "
    "Parquet) with a column of ranks and one or more metrics, a directory of training runs, a sweep "
    "directory, or results of PEFT's method comparison.",
    examples=(
        "analyze results.csv --metric accuracy --margin 0.01",
        "analyze runs/ --confidence 0.9 --json",
    ),
    requests=(AnalyzeRequest,),
    run=run,
)
