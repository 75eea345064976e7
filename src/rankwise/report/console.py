"""A console that is wide enough for tables."""

from rich.console import Console


def wide_console(console: Console | None, width: int = 120) -> Console:
    """Return a console for a table: stdout if None was given.

    A file or a pipe has no width of its own and gets this one, in characters.
    """
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        return Console(file=console.file, width=width)
    return console
