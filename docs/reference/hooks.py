"""Put the commands' own help into the page command-line.md when mkdocs builds the site."""

import os
import subprocess
import sys
from typing import Any

COMMANDS = ("", "sweep", "init", "plan", "analyze", "report", "inspect", "shrink", "resize")
PLACE = "{{ command line help }}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the placeholder by a section for each command, as its ``--help`` prints it."""
    if PLACE not in markdown:
        return markdown
    sections = []
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "rankwise", *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        )
        sections.append(f"## rankwise {command}\n```\n{done.stdout}```\n")
    return markdown.replace(PLACE, "\n".join(sections))
