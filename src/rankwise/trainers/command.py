"""A trainer's command line with placeholders, such as ``python train.py --r {rank} -o {out}``."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankwise.errors import RequestError, nearest, shown

VALUES = ("rank", "lora_alpha", "learning_rate", "seed", "use_rslora", "out", "trial")
"""Placeholders for the values of a trial; ``config`` is a JSON file of all of them."""
PLACEHOLDERS = (*VALUES, "config", "train_data")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
NEEDED = {
    "rank": "every trial would have the same rank",
    "out": "rankwise would not find what a trial leaves",
}


@dataclass(frozen=True)
class Command:
    """A command line with placeholders; it runs without a shell.

    Attributes:
        words: program and arguments, with placeholders in them.
        names: placeholders in them.
    """

    words: tuple[str, ...]
    names: frozenset[str]

    config_name = "config.json"

    def has(self, name: str) -> bool:
        """Return whether each trial is told this value, by itself or in its config."""
        return name in self.names or ("config" in self.names and name in VALUES)

    @property
    def has_config(self) -> bool:
        """Whether the command reads the values of a trial from a file."""
        return "config" in self.names

    def fill(self, values: Mapping[str, str]) -> list[str]:
        """Return program and arguments with the values of one trial."""
        return [PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in self.words]

    def config_text(self, values: Mapping[str, Any]) -> str:
        """Return the file of a trial: its values as JSON."""
        return json.dumps(dict(values), indent=2) + "\n"


def parse_command(text: str) -> Command:
    """Return the command that a text spells.

    Raises:
        RequestError: quotes do not close, a placeholder is unknown, ``{rank}`` or ``{out}`` is
            missing, or there is no such program.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RequestError(f"trainer {shown(text)}: {str(error).lower()}") from None
    names = frozenset(name for word in words for name in PLACEHOLDER.findall(word))
    command = Command(tuple(words), names)
    for name in sorted(names):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            hint = f"{nearest(name, PLACEHOLDERS)}; known: {known}"
            raise RequestError(f"trainer: unknown placeholder {{{name}}}{hint}")
    for name, problem in NEEDED.items():
        if not command.has(name):
            raise RequestError(f"trainer has no {{{name}}}, so {problem}; add it to the command")
    if PLACEHOLDER.search(words[0]) or shutil.which(words[0]) is None:
        raise RequestError(f"trainer: command {words[0]!r} not found; give a program on the PATH")
    return command
