"""The file of results that a long benchmark writes, and its options on the command line."""

import json
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_options(parser: ArgumentParser, out: str, results: Path) -> None:
    """Add ``--out`` for sweeps, ``--results`` for the file, and ``--print`` to run nothing."""
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument(
        "--print",
        dest="printed",
        type=Path,
        metavar="RESULTS",
        help="print these results and run nothing",
    )


def earlier_tasks(path: Path) -> dict[str, Any]:
    """Return the results of the tasks that were run before, by name; none without a file."""
    tasks: dict[str, Any] = json.loads(path.read_text())["tasks"] if path.exists() else {}
    return tasks


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON, in a directory that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
