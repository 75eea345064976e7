"""A YAML file of the user with some values changed; all else, comments too, stays as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rankwise.errors import RequestError, reading, shown
from rankwise.escaping import yaml_value


class ConfigFile:
    """A YAML file that maps settings of a tool to values.

    Attributes:
        text: the file as it is.
        values: its settings.

    Args:
        path: the file.

    Raises:
        RequestError: it cannot be read, is not YAML, or is no mapping.
    """

    def __init__(self, path: Path) -> None:
        import yaml

        self.path = path
        label = f"trainer_config {str(path)!r}"
        with reading(f"{label} cannot be read"):
            self.text = path.read_text(encoding="utf-8")
        with reading(f"{label} is not YAML"):
            content = yaml.safe_load(self.text)
            self._root = cast(Any, yaml.compose(self.text, Loader=yaml.SafeLoader))
        if not isinstance(content, dict) or self._root.flow_style:
            raise RequestError(
                f"{label}: allowed is a mapping with a setting on each line, not {shown(content)}"
            )
        self._refuse_repetitions(label)
        self.values: dict[str, Any] = content

    def _refuse_repetitions(self, label: str) -> None:
        """Refuse a value that stands for several settings, or a setting that is there twice."""
        import yaml

        for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = cast(Any, event.start_mark).line + 1
                raise RequestError(
                    f"{label}, line {line}: alias *{event.anchor} cannot be changed alone; write "
                    "its value there"
                )
        lines: dict[str, int] = {}
        for key, _ in self._root.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                first = lines[key.value]
                raise RequestError(
                    f"{label}, line {line}: {key.value} is on line {first} already; remove one"
                )
            lines[key.value] = line

    def changed(self, values: Mapping[str, object], texts: Mapping[str, str]) -> str:
        """Return the file with other values at the top, and other texts wherever they stand.

        Args:
            values: new values by the names of settings; those that are missing are added.
            texts: new texts by those that they replace, at any depth.
        """
        changes: list[tuple[int, int, str]] = []
        missing = dict(values)
        for key, node in self._root.value:
            if key.value in missing:
                changes.append(_change(node, missing.pop(key.value)))
            else:
                changes += _replaced(node, texts)
        end = self._root.end_mark.index  # a file may go on with "..."
        margin = " " * self._root.start_mark.column
        added = "".join(f"{margin}{name}: {yaml_value(value)}\n" for name, value in missing.items())
        if added and not self.text[:end].endswith("\n"):
            added = f"\n{added}"
        text = self.text[:end] + added + self.text[end:]
        for start, stop, new in sorted(changes, reverse=True):
            text = text[:start] + new + text[stop:]
        return text


def _replaced(node: Any, texts: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Return the changes that replace texts in a node."""
    if isinstance(node.value, str):
        return [_change(node, texts[node.value])] if node.value in texts else []
    changes = []
    for item in node.value:
        inner = item[1] if isinstance(item, tuple) else item
        changes += _replaced(inner, texts)
    return changes


def _change(node: Any, value: object) -> tuple[int, int, str]:
    """Return start, end and new text of a node; one without a text, as in ``seed:``, gets one."""
    start, end = node.start_mark.index, node.end_mark.index
    return start, end, yaml_value(value) if end > start else f" {yaml_value(value)}"
