"""The common look of tables and plots."""

from rich.console import Console

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#d97706", "#6b7280", "#15803d"
FONT = {"family": "system-ui, sans-serif", "size": 13}


def wide_console(console: Console | None, width: int = 120) -> Console:
    """Return a console for a table: stdout if None was given.

    A file or a pipe has no width of its own and gets this one, in characters.
    """
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        return Console(file=console.file, width=width)
    return console
