"""The command ``rankwise report``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, PlotOutput, print_line, show
from rankwise.errors import RequestError
from rankwise.settings import FilePath, Option, Several


@dataclass(frozen=True, kw_only=True)
class ReportRequest(PlotOutput):
    """Sweeps to report on."""

    directories: Annotated[
        tuple[FilePath, ...], Several, Option("Sweep directories.", metavar="DIR", positional=True)
    ]


def run(settings: Mapping[str, Any]) -> None:
    """Write the report of one sweep, or compare several sweeps."""
    request = ReportRequest(**settings)
    if len(request.directories) > 1:
        _compare(request)
        return
    if request.plot is not None:
        raise RequestError(
            "plot: one sweep's plots are in its report; name several sweeps to draw them together"
        )
    from rankwise.report.html import write_report

    path = write_report(request.directories[0])
    print_line(json.dumps({"report": str(path)}) if request.json else f"Report: {path}")


def _compare(request: ReportRequest) -> None:
    from rankwise.report import compare_sweeps as report

    sweeps = report.read_compared_sweeps(request.directories)
    show(
        request,
        document=lambda: [sweep.as_dict() for sweep in sweeps],
        as_text=lambda: report.print_sweep_comparison(sweeps),
        draw=lambda path: report.write_sweep_comparison_plot(sweeps, path),
    )


COMMAND = Command(
    description="Rebuild the report of a sweep from its directory. Several directories, of sweeps "
    "of one task, are compared instead: quality against rank, a column and a line for each.",
    examples=("report my-sweep", "report fixed-alpha rslora --plot comparison.html"),
    requests=(ReportRequest,),
    run=run,
)
