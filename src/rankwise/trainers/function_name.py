"""The name of a function that trains, where a command would stand."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

START = "function "


@dataclass(frozen=True)
class FunctionName:
    """A function of the user, by the name that a sweep notes; it gets every value of a trial."""

    name: str
    has_data: bool = False  # of which it is told the training part

    config_name = "config.json"

    def has(self, name: str) -> bool:
        """Return whether each trial is told this value."""
        return name != "train_data" or self.has_data

    def fill(self, texts: Mapping[str, str]) -> list[str]:
        """Return the call for one trial, as words."""
        told = ("rank", "lora_alpha", "learning_rate", "seed", "use_rslora")
        return [self.name, *(f"{name}={texts[name]}" for name in told)]

    def config_text(self, values: Mapping[str, Any]) -> str:
        """Return a trial's values as JSON."""
        return json.dumps(dict(values), indent=2) + "\n"


def trainer_name(function: Callable[..., Any]) -> str:
    """Return what stands for a function as the setting ``trainer``."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{START}{module}.{name}" if module else f"{START}{name}"


def parse_function(trainer: str, has_data: bool = False) -> FunctionName | None:
    """Return the function that a setting ``trainer`` names; None for a command."""
    if not trainer.startswith(START):
        return None
    return FunctionName(trainer.removeprefix(START), has_data)
