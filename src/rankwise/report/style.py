"""The common look of tables, printed lines, plots and pages."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankwise import formatting
from rankwise.escaping import terminal

if TYPE_CHECKING:
    import jinja2

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


class PlainTable(Table):
    """A table that shows texts as they are: they hold no markup, and nothing that hides."""

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(_text(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        super().add_row(*map(_text, cells), **options)


def new_table(title: str | None = None, caption: str | None = None) -> Table:
    """Return a table without columns, its title and its caption on the left."""
    return PlainTable(
        title=_text(title, "table.title"),
        title_justify="left",
        caption=_text(caption, "table.caption"),
        caption_justify="left",
    )


def _text(value: Any, style: str = "") -> Any:
    """Return a string as text without markup; other things as they are."""
    return Text(terminal(value, keep="\n"), style) if isinstance(value, str) else value


def page_template(name: str, filters: Iterable[str]) -> "jinja2.Template":
    """Return the template of a page, which escapes every text that it shows.

    Args:
        name: the page, ``report`` or ``shrink``.
        filters: functions of `rankwise.formatting` that it uses.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankwise.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown_on_page,
    )
    for each in filters:
        environment.filters[each] = getattr(formatting, each)
    return environment.get_template(f"{name}.html.j2")


def _shown_on_page(value: Any) -> Any:
    """Return a text with hidden characters escaped; the figures' own HTML as it is."""
    return terminal(value, keep="\n") if type(value) is str else value


def print_lines(
    console: Console, *lines: str, wrap: bool = False, style: str | None = None
) -> None:
    """Print lines as they are; unless ``wrap``, a long one, which may hold a path, stays whole."""
    for line in lines:
        console.print(
            terminal(line),
            style=style,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=not wrap,
        )
