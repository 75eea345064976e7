"""Settings that commands share: what they print and draw."""

from dataclasses import dataclass
from typing import Annotated

from rankwise.settings import OUTPUT, FilePath, Flag, Option, Settings


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """The setting of every command."""

    json: Annotated[
        Flag, Option("Print one JSON document to stdout, and nothing else there.", OUTPUT)
    ] = False


@dataclass(frozen=True, kw_only=True)
class PlotOutput(Output):
    """The settings of commands that draw."""

    plot: Annotated[
        FilePath | None, Option("Draw the figures into FILE.html or FILE.png.", OUTPUT, "FILE")
    ] = None
