"""Command-line options made of settings: the bridge from `rankwise.settings` to argparse."""

import argparse
import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

from rankwise.errors import RequestError, nearest
from rankwise.escaping import terminal
from rankwise.settings import (
    GROUPS,
    FilePath,
    Flag,
    Option,
    Settings,
    choices,
    hints,
    options,
    plain_type,
)

WIDEST_PAGE = 100  # columns
LONGEST_CHOICES = 50  # characters; longer lists stand in the help text
PLACEHOLDERS = {"int": "N", "float": "X", "Path": "PATH"}


@dataclass(frozen=True)
class Command:
    """A command of ``rankwise``.

    Attributes:
        description: one or two sentences.
        examples: command lines, without ``rankwise``.
        requests: settings that the command takes; each becomes an option.
        run: does the work; gets the values given for each request, in order.
    """

    description: str
    examples: Sequence[str]
    requests: Sequence[type[Settings]]
    run: Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """The setting of every command."""

    json: Annotated[Flag, Option("Print one JSON document and nothing else.", "output")] = False


@dataclass(frozen=True, kw_only=True)
class PlotOutput(Output):
    """The settings of commands that draw; a path that no figure can be written to is refused."""

    plot: Annotated[
        FilePath | None, Option("Draw the figures into FILE.html or FILE.png.", "output", "FILE")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plot is not None:
            from rankwise.report.figures import check_plot_path

            check_plot_path(self.plot)


def print_json(value: object) -> None:
    """Print the document of ``--json``."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_line(text: str) -> None:
    """Print a line that may hold names from files."""
    print(terminal(text))


def show(
    output: PlotOutput,
    *,
    document: Callable[[], object],
    as_text: Callable[[], None],
    draw: Callable[[Path], None],
) -> None:
    """Draw a result if a plot is requested, and print it as JSON or as text."""
    if output.plot is not None:
        draw(output.plot)
    if output.json:
        print_json(document())
        return
    as_text()
    if output.plot is not None:
        print_line(f"Plot: {output.plot}")


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise RequestError(f"{message}; see '{self.prog} --help'")


def parse(command: Command, name: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return the values that a command line gives, for each of the command's requests.

    Raises:
        RequestError: an option is unknown (the nearest is named) or lacks its value.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST_PAGE) - 2
    parser = Parser(
        prog=f"rankwise {name}",
        description=textwrap.fill(command.description, width),
        epilog="\n".join(["examples:", *(f"  rankwise {line}" for line in command.examples)]),
        formatter_class=partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=26, width=width
        ),
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    known = add_settings(parser, [part for kind in command.requests for part in _settings(kind)])
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        option = unknown[0].partition("=")[0]
        parser.error(f"unrecognized argument {option!r}{nearest(option, known)}")
    values = vars(found)
    return [
        {setting: values[setting] for setting in options(kind) if setting in values}
        for kind in command.requests
    ]


@dataclass(frozen=True)
class Setting:
    """A setting with everything that its option needs."""

    name: str
    option: Option
    hint: Any
    default: Any

    @property
    def names(self) -> list[str]:
        """The option in every spelling."""
        return [f"--{name.replace('_', '-')}" for name in (self.name, *self.option.aliases)]

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return plain_type(self.hint) is bool

    @property
    def metavar(self) -> str:
        """Placeholder for the value: as declared, or the choices, or one for the type."""
        allowed = ",".join(choices(self.hint))
        if self.option.metavar is not None:
            return self.option.metavar
        if allowed and len(allowed) <= LONGEST_CHOICES:
            return f"{{{allowed}}}"
        return PLACEHOLDERS.get(plain_type(self.hint).__name__, "NAME")

    @property
    def help(self) -> str:
        """The sentence of the declaration, with choices and default."""
        text, allowed = self.option.help, choices(self.hint)
        if allowed and self.metavar == "NAME":
            text += f" One of {', '.join(allowed)}."
        default = self.option.unset if self.default in (None, ()) else self.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if default is not None and not self.is_flag and not self.option.positional:
            text += f" (default: {default})"
        return text.replace("%", "%%")


def add_settings(parser: Parser, settings: Sequence[Setting]) -> list[str]:
    """Add an option for every setting under the heading of its group; return the options' names."""
    positional = [setting for setting in settings if setting.option.positional]
    section = parser.add_argument_group("arguments") if positional else parser
    places = [_add_positional(section, setting) for setting in positional]
    parser.usage = " ".join([parser.prog, *places, "[OPTIONS]"])
    known = ["--help"]
    for group in GROUPS:
        members = [setting for setting in settings if setting.option.group == group]
        members = [setting for setting in members if not setting.option.positional]
        section = parser.add_argument_group(group) if members else section
        for setting in members:
            known += _add_option(section, setting)
    section.add_argument("-h", "--help", action="help", help="Show this page.")
    return known


def _settings(kind: type[Settings]) -> Iterator[Setting]:
    defaults = {item.name: item.default for item in fields(kind)}
    for name, option in options(kind).items():
        yield Setting(name, option, hints(kind)[name], defaults[name])


def _add_positional(section: Any, setting: Setting) -> str:
    """Add an argument that is given by its place; return it as the usage line shows it."""
    metavar, nargs, usage = setting.metavar, None, setting.metavar
    if plain_type(setting.hint) is tuple:
        nargs, usage = "+", f"{metavar} [{metavar}...]"
    elif setting.default is None:
        nargs, usage = "?", f"[{metavar}]"
    section.add_argument(setting.name, nargs=nargs, metavar=metavar, help=setting.help)
    return usage


def _add_option(section: Any, setting: Setting) -> list[str]:
    """Add the option of a setting, and of a flag the one that sets it to false."""
    dest, negative = setting.name, setting.option.negative
    if not setting.is_flag:
        first, *aliases = setting.names
        section.add_argument(first, dest=dest, metavar=setting.metavar, help=setting.help)
        for alias in aliases:  # accepted, and not on the page
            section.add_argument(alias, dest=dest, help=argparse.SUPPRESS)
        return setting.names
    if negative is not None:
        section = section.add_mutually_exclusive_group()
    section.add_argument(*setting.names, dest=dest, action="store_true", help=setting.help)
    if negative is None:
        return setting.names
    opposite = f"The opposite of {setting.names[0]}."
    section.add_argument(negative, dest=dest, action="store_false", help=opposite)
    return [*setting.names, negative]
