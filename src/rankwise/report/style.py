"""The common look of tables, printed lines and plots."""

from rich.console import Console
from rich.table import Table

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


def new_table(title: str | None = None, caption: str | None = None) -> Table:
    """Return a table without columns, its title and its caption on the left."""
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left")


def print_lines(
    console: Console, *lines: str, wrap: bool = False, style: str | None = None
) -> None:
    """Print lines as they are; unless ``wrap``, a long one, which may hold a path, stays whole."""
    for line in lines:
        console.print(
            line, style=style, highlight=False, markup=False, emoji=False, soft_wrap=not wrap
        )
