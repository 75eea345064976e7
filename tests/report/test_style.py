"""The common look of tables."""

import io

import pytest
from rich.console import Console

from rankwise.report.style import wide_console


@pytest.mark.parametrize(
    ("terminal", "width", "expected"), [(False, 80, 120), (False, 200, 200), (True, 80, 80)]
)
def test_a_narrow_file_is_widened_and_a_terminal_is_not(
    terminal: bool, width: int, expected: int
) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    assert wide_console(console).width == expected
    assert wide_console(console).file is console.file
