"""Layouts of instruction data: which columns hold messages, Alpaca's fields, prompts or texts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from rankwise.errors import RequestError, some
from rankwise.tasks.cells import is_empty, parse_cell
from rankwise.tasks.config import DataConfig
from rankwise.tasks.messages import MESSAGE_KEYS, ROLE_KEYS
from rankwise.tasks.readers import TEXT_NAMES, Table

# Conventional column names, in lower case.
MESSAGES_NAMES = ("messages", "conversations", "conversation", "dialogue")
PROMPT_NAMES = ("prompt", "question", "query")
COMPLETION_NAMES = ("completion", "response", "answer")
ALPACA_NAMES = {
    "instruction": ["instruction"],
    "input": ["input", "context"],
    "output": ["output", "response"],
}
EXTRA_NAMES = {
    "system": ("system", "system_prompt", "system_message", "system_instruction"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "context": ("context", "input"),
    "template options": ("chat_template_kwargs",),
}
"""Columns beside the dialogues that are parts of them, as TRL, Axolotl, LLaMA-Factory use them."""

EXTRAS = {
    "messages": ("system", "tools", "template options"),
    "chats": ("system", "tools", "template options"),
    "alpaca": ("system", "history", "tools", "template options"),
    "prompt-completion": ("system", "history", "tools", "context", "template options"),
    "text": (),
}
CHAT_EXTRAS = ("system", "history", "tools")
"""Parts that only a chat has: with one of these, prompts and completions are chats."""

FORMAT_NAMES = {
    "messages": "messages",
    "chats": "prompts and completions, as messages,",
    "alpaca": "instructions",
    "prompt-completion": "prompts and completions",
    "text": "texts",
}


@dataclass(frozen=True)
class DataLayout:
    """Columns of instruction data, and the form of its messages, as other tools need to know them.

    Attributes:
        data_format: ``messages``, ``chats`` (prompts and completions that are messages),
            ``prompt-completion``, ``alpaca`` or ``text``.
        columns: column name for each of the format's fields: ``messages``; ``prompt`` and
            ``completion``; ``instruction``, ``output`` and perhaps ``input``; or ``text``; and
            for parts of `EXTRAS` that the data have.
        keys: pairs of message keys for role and content; several if the file mixes them.
        roles: the file's names for ``user``, ``assistant`` and other roles; empty if unknown.
        as_text: whether messages are text instead of lists.
        rewritten: phrases for what rankwise rewrites in messages before a chat template gets them.
    """

    data_format: str
    columns: Mapping[str, str]
    keys: tuple[tuple[str, str], ...] = (MESSAGE_KEYS,)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    as_text: bool = False
    rewritten: tuple[str, ...] = ()

    @property
    def renames_roles(self) -> bool:
        """Whether the file has other role names than chat templates."""
        return any(names != (role,) for role, names in self.roles.items())

    @property
    def extras(self) -> dict[str, str]:
        """Column of each part that is not a field of the format itself."""
        parts = EXTRAS[self.data_format]
        return {part: column for part, column in self.columns.items() if part in parts}

    @property
    def is_chat(self) -> bool:
        """Whether prompts and completions are chats, because they have parts of chats."""
        return self.data_format == "prompt-completion" and not self.extras.keys().isdisjoint(
            CHAT_EXTRAS
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        return asdict(self)

    def describe(self, table: Table) -> str:
        """Return a note on the format and the columns that are used."""
        extras = self.extras
        own = [repr(column) for part, column in self.columns.items() if part not in extras]
        note = f"{FORMAT_NAMES[self.data_format]} from column {', '.join(own)} of {table.path.name}"
        parts = [f"{part} from {column!r}" for part, column in extras.items()]
        note += f", with {' and '.join(parts)}" if parts else ""
        return f"{note}: chats, if the tokenizer has a chat template" if self.is_chat else note


def read_data_layout(record: Mapping[str, Any] | None) -> DataLayout | None:
    """Return the layout in a sweep's task record; None if the task has no instruction data."""
    if record is None:
        return None
    keys = tuple((role, content) for role, content in record["keys"])
    roles = {role: tuple(names) for role, names in record["roles"].items()}
    rewritten = tuple(record["rewritten"])
    return DataLayout(**{**record, "keys": keys, "roles": roles, "rewritten": rewritten})


def find_layout(config: DataConfig, table: Table) -> DataLayout | None:
    """Return the layout that the user's columns imply, or else conventional column names.

    A column of texts alone implies none (see `plain_text_layout`): its texts may have labels.
    """
    _refuse_two_formats(config)
    layout = None if config.text_column is not None else _find_format(config, table)
    return None if layout is None else _with_extras(layout, table)


def plain_text_layout(config: DataConfig, table: Table) -> DataLayout:
    """Return the layout of a column of plain texts, where every token is supervised."""
    return DataLayout("text", {"text": table.pick_column(config.text_column, TEXT_NAMES, "text")})


def looks_like_messages(cell: object) -> bool:
    """Whether a cell is a message or a list of messages, well-formed or not."""
    value = parse_cell(cell)
    value = value.get("messages", [value]) if isinstance(value, dict) else value
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return any(key in value[0] for key in ROLE_KEYS)


def first_cell(table: Table, column: str) -> object:
    """Return the first cell of a column that is not empty; None if there is none."""
    return next((cell for cell in table.cells(column) if not is_empty(cell)), None)


def _find_format(config: DataConfig, table: Table) -> DataLayout | None:
    is_pair_named = config.prompt_column is not None or config.completion_column is not None
    messages = config.messages_column
    if messages is None and not is_pair_named:
        messages = table.find_column(MESSAGES_NAMES)
    if messages is not None:
        return DataLayout("messages", {"messages": messages})
    fields = {name: table.find_column(names) for name, names in ALPACA_NAMES.items()}
    alpaca = {name: column for name, column in fields.items() if column is not None}
    if not is_pair_named and {"instruction", "output"} <= set(alpaca):
        return DataLayout("alpaca", alpaca)
    prompt = config.prompt_column or table.find_column(PROMPT_NAMES)
    completion = config.completion_column or table.find_column(COMPLETION_NAMES)
    if is_pair_named:
        pair = {"prompt": prompt, "completion": completion}
        _require_pair(pair, table)
    if prompt is None or completion is None or prompt == completion:
        return None
    columns = {"prompt": prompt, "completion": completion}
    are_messages = any(looks_like_messages(first_cell(table, name)) for name in columns.values())
    return DataLayout("chats" if are_messages else "prompt-completion", columns)


def _require_pair(pair: Mapping[str, str | None], table: Table) -> None:
    for name, column in pair.items():
        if column is None:
            (other,) = (value for key, value in pair.items() if key != name)
            raise RequestError(
                f"{str(table.path)!r} has no column that is plainly the {name} to go with "
                f"{other!r}; name it with {name}_column; columns: {some(table.columns, 12)}"
            )


def _with_extras(layout: DataLayout, table: Table) -> DataLayout:
    """Return the layout with the columns that are parts of its dialogues."""
    columns = dict(layout.columns)
    for part in EXTRAS[layout.data_format]:
        column = table.find_column(EXTRA_NAMES[part])
        if column is None or column in columns.values():
            continue
        if _can_be(part, first_cell(table, column)):
            columns[part] = column
    return DataLayout(layout.data_format, columns)


def _can_be(part: str, cell: object) -> bool:
    """Whether a cell can be such a part of a dialogue; other columns may have the same name."""
    if cell is None:
        return False
    if part in ("system", "context"):
        return isinstance(cell, str)
    kinds: Mapping[str, type | tuple[type, ...]] = {
        "history": list, "tools": (list, dict), "template options": dict
    }  # fmt: skip
    return isinstance(parse_cell(cell), kinds[part])


def _refuse_two_formats(config: DataConfig) -> None:
    alone = ("text_column", "messages_column")
    others = ("messages_column", "prompt_column", "completion_column")
    for option, other in product(alone, others):
        column, other_column = getattr(config, option), getattr(config, other)
        if option != other and column is not None and other_column is not None:
            names = f"{option} {column!r} and {other} {other_column!r}"
            raise RequestError(f"{names} both name the dialogues; name one")
