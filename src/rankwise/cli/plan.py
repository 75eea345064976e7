"""The command ``rankwise plan``: its options are the fields of its request."""

import argparse
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from rankwise.planning.config import PlanConfig, make_plan_config
from rankwise.planning.quick_imports import quick_imports


def add_plan_command(commands: Any) -> None:
    """Add the command to the others."""
    plan = commands.add_parser(
        "plan",
        help="parameters and memory per rank, what fits a device; no weights needed",
        description="Tell trainable parameters, exactly, and memory of every rank from the model's config alone.",
        allow_abbrev=False,
    )
    for item in fields(PlanConfig):
        text = str(item.metadata["help"]).replace("%", "%%")
        if item.name == "model":
            plan.add_argument("model", metavar="MODEL", help=text)
            continue
        option = f"--{item.name.replace('_', '-')}"
        if isinstance(item.default, bool):
            plan.add_argument(option, action="store_const", const=True, help=text)
            continue
        if item.default not in (None, ()):
            shown = (
                ",".join(map(str, item.default))
                if isinstance(item.default, tuple)
                else item.default
            )
            text = f"{text} Default: {shown}."
        plan.add_argument(option, metavar="X", help=text)
    plan.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a bar for each rank: FILE.html or FILE.png"
    )
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    given = {item.name: getattr(options, item.name) for item in fields(PlanConfig)}
    config = make_plan_config({name: value for name, value in given.items() if value is not None})
    if options.plot is not None:
        from rankwise.report.figures import check_plot_path

        check_plot_path(options.plot)
    with quick_imports() if options.own_process else nullcontext():
        from rankwise.planning.plan import plan

        result = plan(config=config)
    if options.plot is not None:
        from rankwise.report.figures import write_figure
        from rankwise.report.plan_report import plan_figure

        write_figure(plan_figure(result), options.plot)
    if options.json:
        print(result.as_json())
        return
    from rankwise.report.plan_report import print_plan

    print_plan(result)
    if options.plot is not None:
        print(f"Plot: {options.plot}")
