"""The common look of tables and printed lines."""

import io

import pytest
from rich.console import Console

from rankwise.report.style import new_table, print_lines, wide_console


@pytest.mark.parametrize(
    ("terminal", "width", "expected"), [(False, 80, 120), (False, 200, 200), (True, 80, 80)]
)
def test_a_narrow_file_is_widened_and_a_terminal_is_not(
    terminal: bool, width: int, expected: int
) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    assert wide_console(console).width == expected
    assert wide_console(console).file is console.file


@pytest.mark.parametrize(("wrap", "lines"), [(False, 2), (True, 3)])
def test_printed_lines_are_no_markup_and_break_only_where_allowed(wrap: bool, lines: int) -> None:
    console = Console(file=io.StringIO(), width=20)
    print_lines(console, "[bold]/a:train:b", "words " * 5, wrap=wrap)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.startswith("[bold]/a:train:b\n")
    assert len(printed.splitlines()) == lines


def test_titles_and_captions_stand_on_the_left() -> None:
    table = new_table("Title", "Caption")
    assert (table.title_justify, table.caption_justify) == ("left", "left")
