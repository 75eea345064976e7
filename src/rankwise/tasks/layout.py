"""How a file holds instruction data: what other tools have to be told to read the same examples from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KEYS = ("role", "content")  # of a message, as every tool reads them
# What a sweep of an earlier rankwise, which kept no names, is taken to have.
USUAL_COLUMNS = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
}


@dataclass(frozen=True)
class Layout:
    """Columns of a file, and how messages are written in it.

    Attributes:
        data_format: ``messages``, ``prompt-completion``, ``alpaca`` or ``text``.
        columns: that the examples are read from, by the names that USUAL_COLUMNS has for them. Alpaca's ``input`` may
            be missing.
        keys: of messages: pairs of keys for who speaks and what is said; more than one where the file mixes them.
        roles: of messages: what the file calls ``user``, ``assistant`` and any other role; none where not known.
        as_text: whether messages are JSON text instead of lists.
    """

    data_format: str
    columns: Mapping[str, str]
    keys: tuple[tuple[str, str], ...] = (KEYS,)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    as_text: bool = False

    @property
    def renames_roles(self) -> bool:
        """Whether a role has another name than chat templates have for it."""
        return any(names != (role,) for role, names in self.roles.items())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def read_layout(task: Mapping[str, Any]) -> Layout | None:
    """Return the layout that a sweep kept of its task, with the usual names where it kept the format alone.

    None where the task is not one of instruction data.
    """
    kept, data_format = task.get("data_layout"), task.get("data_format")
    if kept is not None:
        keys = tuple((role, content) for role, content in kept["keys"])
        roles = {role: tuple(names) for role, names in kept["roles"].items()}
        return Layout(**{**kept, "keys": keys, "roles": roles})
    if data_format is None:
        return None
    return Layout(data_format, {name: name for name in USUAL_COLUMNS[data_format]})
