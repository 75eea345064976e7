"""The command ``rankwise analyze``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rankwise.checks import check_number


def add_analyze_command(commands: Any) -> None:
    """Add the command to the others."""
    analyze = commands.add_parser(
        "analyze",
        help="a decision from results that others produced",
        description="Decide which rank others' results support: a table (CSV, TSV, JSON lines, Parquet) with a column "
        "of ranks and one or more metrics, a directory of training runs, a sweep directory, or results of PEFT's "
        "method comparison.",
        allow_abbrev=False,
    )
    analyze.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="files and directories"
    )
    analyze.add_argument(
        "--metric",
        metavar="X",
        help="compare by this. Default: the held-out loss, or the first found.",
    )
    analyze.add_argument(
        "--margin",
        metavar="X",
        help="what a smaller rank may cost, in units of the metric. Default: 0.02 for the loss, 0.01 for shares.",
    )
    analyze.add_argument(
        "--confidence",
        metavar="X",
        default="0.95",
        help="confidence of the decision. Default: 0.95.",
    )
    analyze.add_argument(
        "--noise",
        metavar="X",
        help="standard deviation over seeds of one trial's result, where you know it",
    )
    analyze.add_argument(
        "--score-margin",
        metavar="X",
        help="what the rank may be worse in a second metric, as a share (a point of percent is 0.01). Default: 0.01.",
    )
    way = analyze.add_mutually_exclusive_group()
    way.add_argument("--higher-is-better", action="store_true", default=None, help="of the metric")
    way.add_argument(
        "--lower-is-better", dest="higher_is_better", action="store_false", help="of the metric"
    )
    for role, what in (
        ("rank", "ranks"),
        ("seed", "seeds"),
        ("learning-rate", "learning rates"),
        ("example", "held-out examples' ids"),
    ):
        analyze.add_argument(
            f"--{role}-column",
            metavar="X",
            help=f"a table's column of {what}. Default: by its name.",
        )
    analyze.set_defaults(run=_analyze)


def _analyze(options: argparse.Namespace) -> None:
    numbers = {
        name: check_number(name, value, above=0)
        for name in ("margin", "noise", "score_margin")
        if (value := getattr(options, name)) is not None
    }
    confidence = check_number("confidence", options.confidence, above=0, below=1)
    from rankwise.analysis.analysis import analyze

    found = analyze(
        *options.paths,
        metric=options.metric,
        higher_is_better=options.higher_is_better,
        rank_column=options.rank_column,
        seed_column=options.seed_column,
        learning_rate_column=options.learning_rate_column,
        example_column=options.example_column,
        confidence=confidence,
        **numbers,
    )
    for note in found.notes:
        print(note, file=sys.stderr)
    if options.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.decision_table import print_decision

    print_decision(found.decision, score=found.score or "score")
    rank = found.decision.rank
    print(f"Rank supported: {rank if rank is not None else 'undetermined'}")
