"""Follows the Python line that a message gives."""

import pathlib
import re
from pathlib import Path

import pandas
import pytest


def follow(message: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the call in a message in the file's directory; return the file that it writes."""
    monkeypatch.chdir(directory)
    call = re.search(r"(?:pandas\.read_\w+|pathlib\.Path)\(.*\)", message)
    assert call is not None, message
    before = set(directory.iterdir())
    exec(call[0], {"pandas": pandas, "pathlib": pathlib})
    (written,) = set(directory.iterdir()) - before
    return written
