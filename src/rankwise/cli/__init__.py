"""The command line: parses, calls, prints. The options of a sweep are the fields of its config."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from rankwise._version import __version__
from rankwise.cli.adapter import add_adapter_commands
from rankwise.cli.analyze import add_analyze_command
from rankwise.cli.plan import add_plan_command
from rankwise.errors import RankwiseError, RequestError, nearest
from rankwise.sweeps.config import OTHER_NAMES, SweepConfig, make_config, read_yaml


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are rankwise's: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Run a command and return its exit code: 0 done, 1 failed while running, 2 the request was wrong.

    Args:
        arguments: the command's; None for the process's.
        own_process: whether the process ends with the command.
    """
    try:
        options = _parse(list(sys.argv[1:] if arguments is None else arguments))
        options.own_process = own_process
        options.run(options)
        return 0
    except RankwiseError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; complete trials are kept, and the same command goes on from there", 1
        )
    except OSError as error:
        return _fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
        )


def program() -> NoReturn:
    """Run `main` as a process of its own."""
    code = main(own_process=True)
    if sys.argv[1:2] == ["plan"]:
        # What planning imports is half a million objects, and to free them one by one at the end takes a quarter of a
        # second. Nothing else is open.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"rankwise: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="rankwise",
        description="Which LoRA rank does this fine-tuning task need? Answered by measuring it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rankwise {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    add_plan_command(commands)
    sweep = commands.add_parser(
        "sweep",
        help="the main job: train adapters of several ranks and decide which one the task needs",
        description="Train adapters of several ranks, decide which one the task needs, and leave everything on disk. "
        "With no argument, on the built-in task.",
        allow_abbrev=False,
    )
    sweep.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML file with the settings below"
    )
    for item in (item for item in fields(SweepConfig) if item.metadata):
        option, text = f"--{item.name.replace('_', '-')}", str(item.metadata["help"])
        others = [
            f"--{other.replace('_', '-')}"
            for other, name in OTHER_NAMES.items()
            if name == item.name
        ]
        if isinstance(item.default, bool):
            sweep.add_argument(option, action="store_const", const=True, help=text)
            continue
        if item.default not in (None, ()):
            shown = (
                ",".join(map(str, item.default))
                if isinstance(item.default, tuple)
                else item.default
            )
            text = f"{text} Default: {shown}."
        sweep.add_argument(option, *others, metavar="X", help=text.replace("%", "%%"))
    sweep.add_argument(
        "--dry-run",
        action="store_true",
        help="tell the trials, their memory and their time, write nothing, and stop",
    )
    sweep.set_defaults(run=_sweep)

    add_analyze_command(commands)
    add_adapter_commands(commands)
    report = commands.add_parser(
        "report",
        help="rebuild a sweep's report, or put several sweeps side by side",
        description="Rebuild a sweep's report from what its directory holds. Several directories, of sweeps of one "
        "task, are put side by side instead: quality against rank, a column and a line for each.",
        allow_abbrev=False,
    )
    report.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="sweep directories"
    )
    report.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw several sweeps side by side: FILE.html or FILE.png",
    )
    report.set_defaults(run=_report)

    for command in commands.choices.values():
        command.add_argument(
            "--json", action="store_true", help="one JSON document on stdout, nothing else there"
        )
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = commands.choices[options.command]._option_string_actions
        raise RequestError(f"unrecognized argument {unknown[0]!r}{nearest(unknown[0], known)}")
    return options


def _sweep(options: argparse.Namespace) -> None:
    given = {
        item.name: getattr(options, item.name) for item in fields(SweepConfig) if item.metadata
    }
    settings = read_yaml(options.config) if options.config is not None else {}
    config = make_config(
        {**settings, **{name: value for name, value in given.items() if value is not None}}
    )
    from rankwise.report.decision_table import print_decision
    from rankwise.report.progress_bar import ProgressBar

    if options.dry_run:
        from rankwise.report.dry_run_table import print_dry_run
        from rankwise.sweeps.dry_run import dry_run

        with ProgressBar() as progress:
            planned = dry_run(config, progress=progress)
        print(planned.as_json()) if options.json else print_dry_run(planned)
        return
    from rankwise.sweeps.finish import as_json
    from rankwise.sweeps.run import sweep

    with ProgressBar() as progress:
        result = sweep(config, progress=progress)
    if options.json:
        print(as_json(result))
        return
    print_decision(result.decision, score=result.score)
    if result.best is not None:
        cut = f" of {result.decision.trained_at}" if result.decision.question == "keep" else ""
        print(f"Chosen rank: {result.decision.rank}{cut}. Adapter: {result.best}")
    else:
        print(
            f"Chosen rank: undetermined. The adapter of every trial: {result.directory / 'trials'}"
        )
    if result.export is not None:
        print(f"Configs for PEFT, TRL, Axolotl and LLaMA-Factory: {result.export}")
    print(f"Report: {result.report}")


def _report(options: argparse.Namespace) -> None:
    if len(options.directories) > 1:
        _side_by_side(options)
        return
    from rankwise.report.html import write_report

    if options.plot is not None:
        raise RequestError(
            "plot: one sweep's plots are in its report; name several sweeps to draw them together"
        )
    path = write_report(options.directories[0])
    print(json.dumps({"report": str(path)}) if options.json else f"Report: {path}")


def _side_by_side(options: argparse.Namespace) -> None:
    from rankwise.report.compare_sweeps import (
        print_sweep_comparison,
        read_compared_sweeps,
        write_sweep_comparison_plot,
    )
    from rankwise.report.figures import check_plot_path

    if options.plot is not None:
        check_plot_path(options.plot)
    lines = read_compared_sweeps(options.directories)
    if options.plot is not None:
        write_sweep_comparison_plot(lines, options.plot)
    if options.json:
        print(json.dumps([line.as_dict() for line in lines], indent=2, allow_nan=False))
        return
    print_sweep_comparison(lines)
    if options.plot is not None:
        print(f"Plot: {options.plot}")


if __name__ == "__main__":
    program()
