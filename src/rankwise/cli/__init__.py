"""The command line: runs a command, and turns a failure into one line and an exit code."""

import gc
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from rankwise._version import __version__
from rankwise.cli import signals
from rankwise.cli.exhausted import KEPT, explain_exhausted
from rankwise.errors import RankwiseError, RequestError, first_sentence, nearest
from rankwise.escaping import message as as_message

COMMANDS = {
    "plan": "show parameters and memory of every rank before training",
    "sweep": "train adapters of several ranks and decide which rank the task needs",
    "init": "write the file of a sweep by Axolotl, LLaMA-Factory or TRL",
    "analyze": "decide from results that you already have",
    "inspect": "show how much of its rank each layer of a LoRA adapter uses",
    "shrink": "find the smallest rank that a trained adapter can be truncated to",
    "resize": "truncate or grow a LoRA adapter",
    "report": "rebuild the report of a sweep, or compare several sweeps",
}
"""Summaries of the commands; each lives in the module of its name, imported on call."""

DEBUG = "--debug"

COLLECTOR_THRESHOLDS = (10_000, 10, 10)
"""New objects before the collector of cycles looks at them (Python's own number is 700), and how
rarely it looks at older ones: the libraries make a million on import, none of them garbage."""

HELP = """usage: rankwise COMMAND [OPTIONS]

Find out which LoRA rank a fine-tuning task needs, by measuring it.

commands:
{commands}

options:
  -h, --help  show this page; 'rankwise COMMAND --help' shows its options
  --version   show the version
  --debug     with any command: show the traceback of a failure too

examples:
  rankwise plan path/to/model --ranks 4,8,16 --device T4
  rankwise sweep --model path/to/model --data reviews.csv --out my-sweep
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: words of the command line; None for those of the process.

    Returns:
        0: done; 1: failed while running; 2: the request was wrong; 130, 143 and 129: stopped by
        Ctrl-C, SIGTERM and SIGHUP.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != DEBUG]
    command = " ".join(words[:1])
    try:
        _run(words)
        return 0
    except BaseException as error:  # a panic of a library in Rust is not even an Exception
        stop = signals.stopped_by(error)
        if stop is None and isinstance(error, SystemExit):  # of --help
            raise
        if DEBUG in given:
            traceback.print_exception(error)
        if stop is None:
            message = explain_exhausted(error, command) or _explain(error)
            code = getattr(error, "exit_code", 1)
        else:
            message = signals.WORDS[stop] + (f"; {KEPT}" if command == "sweep" else "")
            code = 128 + stop
    print(f"rankwise: {as_message(message)}", file=sys.stderr)
    return code


def _explain(error: BaseException) -> str:
    """Return what a failure means for the user."""
    if isinstance(error, RankwiseError):
        return str(error)
    if isinstance(error, OSError):
        return first_sentence(error) + (f": {error.filename}" if error.filename else "")
    reason, kind = first_sentence(error), type(error).__name__
    reason = reason if reason.startswith(kind) else f"{kind}: {reason}"
    return f"{reason}; this is a fault of rankwise, to be reported with what {DEBUG} shows"


def program() -> NoReturn:
    """Run `main` as a process, which stops with one line at any signal."""
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    signals.attend()
    code = main()
    signals.let_go(code)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> None:
    if not arguments:
        raise RequestError("the argument COMMAND is missing; see 'rankwise --help'")
    name, *rest = arguments
    if name in ("-h", "--help"):
        lines = [f"  {name:9}{summary}" for name, summary in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
    elif name == "--version":
        print(f"rankwise {__version__}")
    elif name in COMMANDS:
        from rankwise.cli.options import parse

        command = import_module(f"rankwise.cli.{name}").COMMAND
        command.run(*parse(command, name, rest))
    else:
        hint = f"{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}"
        raise RequestError(f"{name!r} is not a command{hint}")
