"""The command ``rankwise inspect``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, PlotOutput, print_json
from rankwise.settings import FilePath, Option


@dataclass(frozen=True, kw_only=True)
class InspectRequest(PlotOutput):
    """Adapters to inspect."""

    adapter: Annotated[
        FilePath,
        Option("Directory of an adapter, as PEFT saves it.", metavar="ADAPTER", positional=True),
    ]
    other: Annotated[
        FilePath | None,
        Option(
            "Second adapter of the same base model, to compare with.",
            metavar="OTHER",
            positional=True,
        ),
    ] = None


def run(settings: Mapping[str, Any]) -> None:
    """Inspect an adapter, or compare two."""
    request = InspectRequest(**settings)
    from rankwise.lora.inspection import inspect_adapter
    from rankwise.report.inspect_report import print_inspection, write_inspection_plot

    inspection = inspect_adapter(request.adapter, request.other)
    if request.plot is not None:
        write_inspection_plot(inspection, request.plot)
    if request.json:
        print_json(inspection.as_dict())
        return
    print_inspection(inspection)
    if request.plot is not None:
        print(f"Plot: {request.plot}")


COMMAND = Command(
    description="Show the singular values of a PEFT LoRA adapter's update to each layer, and how "
    "much of its rank each layer uses. With a second adapter, show which directions the two share.",
    examples=("inspect my-sweep/best", "inspect my-sweep/best other/adapter --plot overlap.html"),
    requests=(InspectRequest,),
    run=run,
)
