"""Instruction data in the shapes that people have, read as dialogues: who says what, and what is to be learnt."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some
from rankwise.tasks.config import DataConfig
from rankwise.tasks.readers import TEXT_NAMES, check_texts, find_column, pick_column

MESSAGE_KEYS = ("role", "content")  # of a message, as every tool reads them
# What a sweep of an earlier rankwise, which kept no names, is taken to have.
USUAL_COLUMNS = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
}


@dataclass(frozen=True)
class DataLayout:
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
    keys: tuple[tuple[str, str], ...] = (MESSAGE_KEYS,)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    as_text: bool = False

    @property
    def renames_roles(self) -> bool:
        """Whether a role has another name than chat templates have for it."""
        return any(names != (role,) for role, names in self.roles.items())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def read_data_layout(task: Mapping[str, Any]) -> DataLayout | None:
    """Return the layout that a sweep kept of its task, with the usual names where it kept the format alone.

    None where the task is not one of instruction data.
    """
    kept, data_format = task.get("data_layout"), task.get("data_format")
    if kept is not None:
        keys = tuple((role, content) for role, content in kept["keys"])
        roles = {role: tuple(names) for role, names in kept["roles"].items()}
        return DataLayout(**{**kept, "keys": keys, "roles": roles})
    if data_format is None:
        return None
    return DataLayout(data_format, {name: name for name in USUAL_COLUMNS[data_format]})


MESSAGES_NAMES = ("messages", "conversations", "conversation", "dialogue")
PROMPT_NAMES = ("prompt", "question")
COMPLETION_NAMES = ("completion", "response", "answer")
OUTPUT_NAMES = ("output", "response")
# ShareGPT's names for roles and keys.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
# Stanford Alpaca's prompts (Taori et al. 2023, train.py), for tokenizers without a chat template.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Dialogue:
    """One example of supervised fine-tuning.

    Attributes:
        turns: role and content of each message, for a chat template; none where the data are plain texts.
        prompt: what comes before the completion, as it is; None where only a chat template can tell.
        completion: what is to be learnt.
    """

    turns: tuple[tuple[str, str], ...] = ()
    prompt: str | None = None
    completion: str = ""


@dataclass(frozen=True)
class Shape:
    """How a table holds dialogues.

    Attributes:
        columns: that it uses, see `DataLayout`.
        name: in a note.
        data_format: ``messages``, ``prompt-completion``, ``alpaca`` or ``text``, as other tools are told.
        make: from a table with those columns and its path to a dialogue for each row.
    """

    columns: Mapping[str, str]
    name: str
    data_format: str
    make: Callable[[pd.DataFrame, Path], list[Dialogue]]

    def read(self, table: pd.DataFrame, path: Path) -> list[Dialogue]:
        """Return a dialogue for each row.

        Raises:
            RequestError: a column is missing, or rows hold something else; they are named.
        """
        for column in self.columns.values():
            pick_column(table, column, (), "", path)
        return self.make(table, path)

    def layout(self, table: pd.DataFrame) -> DataLayout:
        """Return what other tools have to be told of a table that `read` takes."""
        if self.data_format == "messages":
            return _layout_of_messages(table[self.columns["messages"]])
        return DataLayout(self.data_format, self.columns)


def find_shape(config: DataConfig, table: pd.DataFrame) -> Shape | None:
    """Return the shape that columns named in the config, or conventional names, tell; None if none does.

    A column of texts alone tells nothing (see `plain_text`): it may be anything.

    Raises:
        RequestError: columns of two shapes are named.
    """
    for alone in ("text_column", "messages_column"):
        for setting in ("messages_column", "prompt_column", "completion_column"):
            one, other = getattr(config, alone), getattr(config, setting)
            if one is not None and other is not None and setting != alone:
                raise RequestError(
                    f"{alone} {one!r} and {setting} {other!r} both name the dialogues; name one"
                )
    if config.text_column is not None:
        return None
    named = config.prompt_column is not None or config.completion_column is not None
    messages = config.messages_column or (None if named else find_column(table, MESSAGES_NAMES))
    if messages is not None:
        return Shape(
            {"messages": messages},
            "messages",
            "messages",
            lambda table, path: _from_messages(table[messages], path),
        )
    instruction, output = find_column(table, ("instruction",)), find_column(table, OUTPUT_NAMES)
    if not named and instruction is not None and output is not None:
        more = find_column(table, ("input",))
        columns = {
            "instruction": instruction,
            **({} if more is None else {"input": more}),
            "output": output,
        }
        return Shape(
            columns,
            "instructions",
            "alpaca",
            lambda table, path: _from_alpaca(table, path, instruction, more, output),
        )
    prompt = config.prompt_column or find_column(table, PROMPT_NAMES)
    completion = config.completion_column or find_column(table, COMPLETION_NAMES)
    if prompt is None or completion is None or prompt == completion:
        return None
    return Shape(
        {"prompt": prompt, "completion": completion},
        "prompts and completions",
        "prompt-completion",
        lambda table, path: [
            Dialogue(prompt=before, completion=after)
            for before, after in zip(
                check_texts(table[prompt], path), check_texts(table[completion], path), strict=True
            )
        ],
    )


def plain_text(config: DataConfig, table: pd.DataFrame, path: Path) -> Shape:
    """Return the shape of a column of texts, all of whose tokens are learnt.

    Raises:
        RequestError: there is no such column.
    """
    column = pick_column(table, config.text_column, TEXT_NAMES, "text", path)
    return Shape(
        {"text": column},
        "texts",
        "text",
        lambda table, path: [
            Dialogue(prompt="", completion=text) for text in check_texts(table[column], path)
        ],
    )


def _from_alpaca(
    table: pd.DataFrame, path: Path, instruction: str, more: str | None, output: str
) -> list[Dialogue]:
    inputs: Iterable[Any] = [""] * len(table) if more is None else table[more]
    dialogues = []
    rows = zip(
        check_texts(table[instruction], path), inputs, check_texts(table[output], path), strict=True
    )
    for asked, given, answer in rows:
        given = given if isinstance(given, str) else ""  # most instructions have no input
        said = f"{asked}\n\n{given}" if given.strip() else asked
        template = ALPACA_WITH_INPUT if given.strip() else ALPACA
        dialogues.append(
            Dialogue(
                (("user", said), ("assistant", answer)),
                template.format(instruction=asked, input=given),
                answer,
            )
        )
    return dialogues


def _from_messages(values: pd.Series, path: Path) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    bad: list[int] = []
    for row, value in enumerate(values, start=1):
        turns = _turns(value)
        if turns is None or not any(role == "assistant" for role, _ in turns):
            bad.append(row)
        else:
            dialogues.append(Dialogue(turns))
    if bad:
        raise RequestError(
            f"column {values.name!r} of {str(path)!r}: no messages in {len(bad)} of {len(values)} rows (row "
            f"{some(bad)}); allowed is a list such as [{{'role': 'user', 'content': '...'}}, "
            "{'role': 'assistant', 'content': '...'}], with an assistant's message in it"
        )
    return dialogues


def _layout_of_messages(values: pd.Series) -> DataLayout:
    """Say how messages are written that `_from_messages` can read."""
    keys: dict[tuple[str, str], None] = {}
    roles: dict[str, dict[str, None]] = {}
    for value in values:
        for message in _messages(value) or ():
            used = _keys(message)
            keys[used] = None
            name = message[used[0]]
            roles.setdefault(ROLES.get(name, name), {})[name] = None
    return DataLayout(
        "messages",
        {"messages": str(values.name)},
        tuple(keys),
        {role: tuple(names) for role, names in roles.items()},
        any(isinstance(value, str) for value in values),
    )


def _turns(value: object) -> tuple[tuple[str, str], ...] | None:
    """Read a list of messages, or its JSON; None if it is none."""
    messages = _messages(value)
    if messages is None:
        return None
    turns = []
    for message in messages:
        role, content = (message.get(key) for key in _keys(message))
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append((ROLES.get(role, role), content))
    return tuple(turns)


def _messages(value: object) -> Sequence[dict[str, Any]] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    value = value.tolist() if hasattr(value, "tolist") else value  # Parquet gives arrays
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    return value if all(isinstance(message, dict) for message in value) else None


def _keys(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys that a message has for who speaks and what is said: ShareGPT's if not the usual ones."""
    role, content = MESSAGE_KEYS
    return role if role in message else "from", content if content in message else "value"
