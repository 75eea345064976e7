"""The command ``rankwise inspect``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, PlotOutput
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
    asked = InspectRequest(**settings)
    if asked.plot is not None:
        from rankwise.report.figures import check_plot_path

        check_plot_path(asked.plot)
    from rankwise.lora.inspection import inspect_adapter

    found = inspect_adapter(asked.adapter, asked.other)
    if asked.plot is not None:
        from rankwise.report.inspect_report import write_inspection_plot

        write_inspection_plot(found, asked.plot)
    if asked.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.inspect_report import print_inspection

    print_inspection(found)
    if asked.plot is not None:
        print(f"Plot: {asked.plot}")


COMMAND = Command(
    description="Show the singular values of what a PEFT LoRA adapter adds to each layer, and how "
    "much of its rank each layer uses; with a second adapter, which directions the two share.",
    examples=("inspect my-sweep/best", "inspect my-sweep/best other/adapter --plot overlap.html"),
    requests=(InspectRequest,),
    run=run,
)
