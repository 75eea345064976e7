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
from rankwise.cli_adapter import add_adapter_commands
from rankwise.cli_analyze import add_analyze_command
from rankwise.cli_plan import add_plan_command
from rankwise.config import SweepConfig, make_config, read_yaml
from rankwise.errors import RankwiseError, RequestError, nearest


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are rankwise's: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed while running, 2 the request was wrong."""
    try:
        options = _parse(list(sys.argv[1:] if arguments is None else arguments))
        options.run(options)
        return 0
    except RankwiseError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; complete trials are kept, and the same command goes on from there", 1)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)


def program() -> NoReturn:
    """Run `main` as a process of its own."""
    code = main()
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
    sweep.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="YAML file with the settings below")
    for item in fields(SweepConfig):
        option, text = f"--{item.name.replace('_', '-')}", str(item.metadata["help"])
        if isinstance(item.default, bool):
            sweep.add_argument(option, action="store_const", const=True, help=text)
            continue
        if item.default is not None:
            shown = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
            text = f"{text} Default: {shown}."
        sweep.add_argument(option, metavar="X", help=text.replace("%", "%%"))
    sweep.set_defaults(run=_sweep)

    add_analyze_command(commands)
    add_adapter_commands(commands)
    report = commands.add_parser(
        "report",
        help="rebuild a sweep's report",
        description="Rebuild a sweep's report from what its directory holds.",
        allow_abbrev=False,
    )
    report.add_argument("directory", type=Path, metavar="DIR", help="a sweep directory")
    report.set_defaults(run=_report)

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else there")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = commands.choices[options.command]._option_string_actions
        raise RequestError(f"unrecognized argument {unknown[0]!r}{nearest(unknown[0], known)}")
    return options


def _sweep(options: argparse.Namespace) -> None:
    given = {item.name: getattr(options, item.name) for item in fields(SweepConfig)}
    settings = read_yaml(options.config) if options.config is not None else {}
    config = make_config({**settings, **{name: value for name, value in given.items() if value is not None}})
    from rankwise.api import as_json, sweep
    from rankwise.report.terminal import ProgressBar, print_decision

    with ProgressBar() as progress:
        result = sweep(config, progress=progress)
    if options.json:
        print(as_json(result))
        return
    print_decision(result.decision, score=result.score)
    if result.best is not None:
        print(f"Chosen rank: {result.decision.rank}. Adapter: {result.best}")
    else:
        print(f"Chosen rank: undetermined. The adapter of every trial: {result.directory / 'trials'}")
    print(f"Report: {result.report}")


def _report(options: argparse.Namespace) -> None:
    from rankwise.report.html import write_report

    path = write_report(options.directory)
    print(json.dumps({"report": str(path)}) if options.json else f"Report: {path}")


if __name__ == "__main__":
    program()
