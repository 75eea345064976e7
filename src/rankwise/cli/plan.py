"""The command ``rankwise plan``."""

from collections.abc import Mapping
from typing import Any

from rankwise.cli.options import Command, PlotOutput
from rankwise.planning.config import PlanConfig, make_plan_config


def run(output: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Plan parameters and memory, and print them."""
    asked, config = PlotOutput(**output), make_plan_config(settings)
    if asked.plot is not None:
        from rankwise.report.figures import check_plot_path

        check_plot_path(asked.plot)
    from rankwise.models.compat import quiet_libraries

    with quiet_libraries():  # PEFT imports bitsandbytes, which on some processors logs a warning
        from rankwise.planning.plan import plan

    result = plan(config=config)
    if asked.plot is not None:
        from rankwise.report.figures import write_figure
        from rankwise.report.plan_report import plan_figure

        write_figure(plan_figure(result), asked.plot)
    if asked.json:
        print(result.as_json())
        return
    from rankwise.report.plan_report import print_plan

    print_plan(result)
    if asked.plot is not None:
        print(f"Plot: {asked.plot}")


COMMAND = Command(
    description="Show the trainable parameters (exact) and the training memory of every rank, from "
    "the model's config alone.",
    examples=(
        "plan path/to/model --ranks 8,16,32 --device T4",
        "plan path/to/model --quantization nf4 --memory 24GB --plot plan.html",
    ),
    requests=(PlotOutput, PlanConfig),
    run=run,
)
