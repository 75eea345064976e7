"""The command ``rankwise inspect``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, PlotOutput, show
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
    show(
        request,
        document=inspection.as_dict,
        as_text=lambda: print_inspection(inspection),
        draw=lambda path: write_inspection_plot(inspection, path),
    )


COMMAND = Command(
    description="Show the singular values of a PEFT LoRA adapter's update to each layer, and how "
    "much of its rank each layer uses. With a second adapter, show which directions the two share.",
    examples=("inspect my-sweep/best", "inspect my-sweep/best other/adapter --plot overlap.html"),
    requests=(InspectRequest,),
    run=run,
)
