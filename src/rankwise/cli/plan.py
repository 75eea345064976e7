"""The command ``rankwise plan``."""

from collections.abc import Mapping
from typing import Any

from rankwise.cli.options import Command, PlotOutput
from rankwise.planning.config import PlanConfig


def run(settings: Mapping[str, Any], output_settings: Mapping[str, Any]) -> None:
    """Plan parameters and memory, and print them."""
    output, config = PlotOutput(**output_settings), PlanConfig(**settings)
    from rankwise.models.compat import compiler_off, quiet_libraries

    # PEFT imports bitsandbytes, which on some processors logs a warning. A plan compiles nothing.
    with quiet_libraries(), compiler_off():
        from rankwise.planning.plan import plan

    result = plan(config=config)
    if output.plot is not None:
        from rankwise.report.figures import write_figure
        from rankwise.report.plan_report import plan_figure

        write_figure(plan_figure(result), output.plot)
    if output.json:
        print(result.as_json())
        return
    from rankwise.report.plan_report import print_plan

    print_plan(result)
    if output.plot is not None:
        print(f"Plot: {output.plot}")


COMMAND = Command(
    description="Show the trainable parameters (exact) and the training memory of every rank, from "
    "the model's config alone.",
    examples=(
        "plan path/to/model --ranks 8,16,32 --device T4",
        "plan path/to/model --quantization nf4 --memory 24GB --plot plan.html",
    ),
    requests=(PlanConfig, PlotOutput),
    run=run,
)
