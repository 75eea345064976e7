"""The command ``rankwise plan``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.cli.options import Command, PlotOutput, show
from rankwise.planning.config import PlanConfig


def run(settings: Mapping[str, Any], output_settings: Mapping[str, Any]) -> None:
    """Plan parameters and memory, and print them."""
    output, config = PlotOutput(**output_settings), PlanConfig(**settings)
    from rankwise.models.compat import importing
    from rankwise.models.files import check_model_path

    check_model_path(config.model)
    with importing():
        from rankwise.planning.plan import plan

    result = plan(config=config)

    def as_text() -> None:
        from rankwise.report.plan_report import print_plan

        print_plan(result)

    def draw(path: Path) -> None:
        from rankwise.report.figures import write_figure
        from rankwise.report.plan_report import plan_figure

        write_figure(plan_figure(result), path)

    show(output, document=result.as_dict, as_text=as_text, draw=draw)


COMMAND = Command(
    description="Show the trainable parameters (exact) and the training memory of every rank, from "
    "the model's config alone.",
    examples=(
        "plan path/to/model --ranks 8,16,32 --device T4",
        "plan path/to/model --quantization nf4 --memory 24GB --plot plan.html",
        "plan path/to/model --engine fused --device H100 --train-examples 10000 --tflops 300",
    ),
    requests=(PlanConfig, PlotOutput),
    run=run,
)
