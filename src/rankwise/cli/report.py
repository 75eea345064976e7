"""The command ``rankwise report``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rankwise.cli.options import Command, PlotOutput
from rankwise.errors import RequestError
from rankwise.settings import FilePath, Option, Several


@dataclass(frozen=True, kw_only=True)
class ReportRequest(PlotOutput):
    """Sweeps to report on."""

    directories: Annotated[
        tuple[FilePath, ...],
        Several,
        Option("Sweep directories.", metavar="DIR", positional=True),
    ]


def run(settings: Mapping[str, Any]) -> None:
    """Write the report of one sweep, or compare several sweeps."""
    asked = ReportRequest(**settings)
    if len(asked.directories) > 1:
        _compare(asked)
        return
    if asked.plot is not None:
        raise RequestError(
            "plot: one sweep's plots are in its report; name several sweeps to draw them together"
        )
    from rankwise.report.html import write_report

    path = write_report(Path(asked.directories[0]))
    print(json.dumps({"report": str(path)}) if asked.json else f"Report: {path}")


def _compare(asked: ReportRequest) -> None:
    from rankwise.report.compare_sweeps import (
        print_sweep_comparison,
        read_compared_sweeps,
        write_sweep_comparison_plot,
    )
    from rankwise.report.figures import check_plot_path

    if asked.plot is not None:
        check_plot_path(asked.plot)
    lines = read_compared_sweeps(asked.directories)
    if asked.plot is not None:
        write_sweep_comparison_plot(lines, asked.plot)
    if asked.json:
        print(json.dumps([line.as_dict() for line in lines], indent=2, allow_nan=False))
        return
    print_sweep_comparison(lines)
    if asked.plot is not None:
        print(f"Plot: {asked.plot}")


COMMAND = Command(
    description="Rebuild the report of a sweep from its directory. Several directories, of sweeps "
    "of one task, are compared instead: quality against rank, a column and a line for each.",
    examples=("report my-sweep", "report fixed-alpha rslora --plot comparison.html"),
    requests=(ReportRequest,),
    run=run,
)
