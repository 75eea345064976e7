"""Formats of instruction data: messages, Alpaca's, prompts with completions, and plain texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, product
from typing import Any

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.readers import TEXT_NAMES, Table

# Conventional column names, in lower case.
MESSAGES_NAMES = ("messages", "conversations", "conversation", "dialogue")
PROMPT_NAMES = ("prompt", "question")
COMPLETION_NAMES = ("completion", "response", "answer")
ALPACA_NAMES = {
    "instruction": ["instruction"],
    "input": ["input"],
    "output": ["output", "response"],
}
FORMAT_NAMES = {
    "messages": "messages",
    "alpaca": "instructions",
    "prompt-completion": "prompts and completions",
    "text": "texts",
}

MESSAGE_KEYS = ("role", "content")  # keys of a message in the format that every tool reads
SHAREGPT_KEYS = ("from", "value")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
"""ShareGPT's role names, and the names that chat templates have for them."""

# Prompts of Stanford Alpaca (Taori et al. 2023, train.py), for tokenizers without a chat template.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

Message = Mapping[str, Any]
Turns = tuple[tuple[str, str], ...]
"""Role and content of each message."""


@dataclass(frozen=True)
class Dialogue:
    """One example of supervised fine-tuning.

    Attributes:
        turns: role and content of each message, for a chat template; empty for plain texts.
        prompt: text before the completion; None if only a chat template can write it.
        completion: text to learn.
    """

    turns: Turns = ()
    prompt: str | None = None
    completion: str = ""


@dataclass(frozen=True)
class DataLayout:
    """Columns of instruction data, and the form of its messages, as other tools need to know them.

    Attributes:
        data_format: ``messages``, ``prompt-completion``, ``alpaca`` or ``text``.
        columns: column name for each of the format's fields: ``messages``; ``prompt`` and
            ``completion``; ``instruction``, ``output`` and perhaps ``input``; or ``text``.
        keys: pairs of message keys for role and content; several if the file mixes them.
        roles: the file's names for ``user``, ``assistant`` and other roles; empty if unknown.
        as_text: whether messages are JSON text instead of lists.
    """

    data_format: str
    columns: Mapping[str, str]
    keys: tuple[tuple[str, str], ...] = (MESSAGE_KEYS,)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    as_text: bool = False

    @property
    def renames_roles(self) -> bool:
        """Whether the file has other role names than chat templates."""
        return any(names != (role,) for role, names in self.roles.items())

    def as_dict(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        return asdict(self)

    def describe(self, table: Table) -> str:
        """Return a note on the format and the columns that are used."""
        columns = ", ".join(map(repr, self.columns.values()))
        return f"{FORMAT_NAMES[self.data_format]} from column {columns} of {table.path.name}"

    def read(self, table: Table) -> tuple[list[Dialogue], "DataLayout"]:
        """Return the dialogue in each row, and the layout with the form of the messages."""
        if self.data_format == "messages":
            return _parse_messages(table, self)
        if self.data_format == "alpaca":
            return _parse_alpaca(table, self.columns), self
        texts = [table.texts(column) for column in self.columns.values()]
        if self.data_format == "text":
            return [Dialogue(prompt="", completion=text) for text in texts[0]], self
        pairs = zip(*texts, strict=True)
        return [Dialogue(prompt=prompt, completion=text) for prompt, text in pairs], self


def read_data_layout(record: Mapping[str, Any] | None) -> DataLayout | None:
    """Return the layout in a sweep's task record; None if the task has no instruction data."""
    if record is None:
        return None
    keys = tuple((role, content) for role, content in record["keys"])
    roles = {role: tuple(names) for role, names in record["roles"].items()}
    return DataLayout(**{**record, "keys": keys, "roles": roles})


def find_layout(config: DataConfig, table: Table) -> DataLayout | None:
    """Return the layout that the user's columns imply, or else conventional column names.

    A column of texts alone implies none (see `plain_text_layout`): its texts may have labels.
    """
    _refuse_two_formats(config)
    if config.text_column is not None:
        return None
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
    if prompt is None or completion is None or prompt == completion:
        return None
    return DataLayout("prompt-completion", {"prompt": prompt, "completion": completion})


def plain_text_layout(config: DataConfig, table: Table) -> DataLayout:
    """Return the layout of a column of plain texts, where every token is supervised."""
    return DataLayout("text", {"text": table.pick_column(config.text_column, TEXT_NAMES, "text")})


def holds_messages(value: object) -> bool:
    """Whether a cell holds messages, one of the assistant's among them."""
    return _turns(_read_messages(value)) is not None


def _refuse_two_formats(config: DataConfig) -> None:
    alone = ("text_column", "messages_column")
    others = ("messages_column", "prompt_column", "completion_column")
    for option, other in product(alone, others):
        column, other_column = getattr(config, option), getattr(config, other)
        if option != other and column is not None and other_column is not None:
            names = f"{option} {column!r} and {other} {other_column!r}"
            raise RequestError(f"{names} both name the dialogues; name one")


def _parse_alpaca(table: Table, columns: Mapping[str, str]) -> list[Dialogue]:
    instructions, outputs = table.texts(columns["instruction"]), table.texts(columns["output"])
    inputs: Sequence[Any] = [""] * len(table)
    if "input" in columns:
        inputs = list(table.cells(columns["input"]))
    dialogues = []
    for instruction, text, output in zip(instructions, inputs, outputs, strict=True):
        question, prompt = instruction, ALPACA.format(instruction=instruction)
        if isinstance(text, str) and text.strip():  # an empty cell is missing
            question = f"{instruction}\n\n{text}"
            prompt = ALPACA_WITH_INPUT.format(instruction=instruction, input=text)
        turns = (("user", question), ("assistant", output))
        dialogues.append(Dialogue(turns, prompt, output))
    return dialogues


def _parse_messages(table: Table, layout: DataLayout) -> tuple[list[Dialogue], DataLayout]:
    column = layout.columns["messages"]
    cells = list(table.cells(column))
    conversations = [_read_messages(cell) for cell in cells]
    turns = [_turns(messages) for messages in conversations]
    table.refuse_bad_rows(
        column,
        [turns_of_row is not None for turns_of_row in turns],
        "no messages",
        "allowed is a list such as [{'role': 'user', 'content': '...'}, "
        "{'role': 'assistant', 'content': '...'}], with an assistant's message in it",
    )
    dialogues = [Dialogue(turns_of_row) for turns_of_row in turns if turns_of_row is not None]
    # Dictionaries keep each key once, in the order of the file.
    keys: dict[tuple[str, str], None] = {}
    roles: dict[str, dict[str, None]] = {}
    for message in chain.from_iterable(conversations):
        message_keys = _message_keys(message)
        keys[message_keys] = None
        name: str = message[message_keys[0]]
        roles.setdefault(ROLES.get(name, name), {})[name] = None
    names_of_role = {role: tuple(names) for role, names in roles.items()}
    as_text = any(isinstance(cell, str) for cell in cells)
    return dialogues, replace(layout, keys=tuple(keys), roles=names_of_role, as_text=as_text)


def _read_messages(cell: object) -> Sequence[Message]:
    """Return a cell's list of messages, parsed if it is JSON text; empty if it holds none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return []
    cell = cell.tolist() if hasattr(cell, "tolist") else cell  # Parquet gives arrays
    if isinstance(cell, list) and all(isinstance(message, dict) for message in cell):
        return cell
    return []


def _turns(messages: Sequence[Message]) -> Turns | None:
    """Return role and content of each message; None without an assistant's, or if malformed."""
    turns = []
    for message in messages:
        role, content = (message.get(key) for key in _message_keys(message))
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append((ROLES.get(role, role), content))
    return tuple(turns) if any(role == "assistant" for role, _ in turns) else None


def _message_keys(message: Message) -> tuple[str, str]:
    """Return the keys of a message's role and content, the usual ones or ShareGPT's."""
    role, content = (
        usual if usual in message else sharegpt
        for usual, sharegpt in zip(MESSAGE_KEYS, SHAREGPT_KEYS, strict=True)
    )
    return role, content
