"""The command line: finds the command, runs it and turns failures into one line and an exit code."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from rankwise._version import __version__
from rankwise.errors import RankwiseError, RequestError, nearest

COMMANDS = {
    "plan": "parameters and memory of every rank before training",
    "sweep": "train adapters of several ranks and decide which rank the task needs",
    "analyze": "decide from results that others produced",
    "inspect": "singular values and effective rank of a LoRA adapter, layer by layer",
    "resize": "truncate or grow a LoRA adapter",
    "report": "rebuild the report of a sweep, or compare several sweeps",
}
"""Summaries of the commands; each lives in the module of its name, imported when it is called."""

HELP = """usage: rankwise COMMAND [OPTIONS]

Which LoRA rank does this fine-tuning task need? Answered by measuring it.

commands:
{commands}

options:
  --help     show this page; 'rankwise COMMAND --help' shows a command's options
  --version  show the version

examples:
  rankwise plan path/to/model --ranks 4,8,16 --device T4
  rankwise sweep --model path/to/model --data reviews.csv --ranks 4,8,16
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: words of the command line; None for those of the process.

    Returns:
        0: done; 1: failed while running; 2: the request was wrong.
    """
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
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
    """Run `main` as a process."""
    sys.exit(main())


def _run(arguments: Sequence[str]) -> None:
    if not arguments:
        raise RequestError("the argument COMMAND is missing; see 'rankwise --help'")
    name, *rest = arguments
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return
    if name == "--version":
        print(f"rankwise {__version__}")
        return
    if name not in COMMANDS:
        raise RequestError(
            f"{name!r} is not a command{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}"
        )
    from rankwise.cli.options import parse

    command = import_module(f"rankwise.cli.{name}").COMMAND
    command.run(*parse(command, name, rest))


def _fail(message: str, code: int) -> int:
    print(f"rankwise: {' '.join(message.split())}", file=sys.stderr)
    return code
