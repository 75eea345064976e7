"""Dialogues in the rows of a table, ready for a chat template or as plain texts."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.errors import RequestError
from rankwise.tasks.cells import is_empty, parse_cell
from rankwise.tasks.chat_formats import DataLayout
from rankwise.tasks.messages import (
    BadMessages,
    Conversation,
    Message,
    read_conversation,
    read_tools,
)
from rankwise.tasks.readers import Table

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


@dataclass(frozen=True)
class Dialogue:
    """One example of supervised fine-tuning.

    Attributes:
        messages: messages for a chat template, with all their keys; empty for plain texts.
        learnt: whether each message's tokens are learnt, (len(messages),).
        tools: definitions of tools for the chat template.
        options: names and values of further variables of the chat template.
        prompt: text before the completion; None if only a chat template can write it.
        completion: text to learn.
    """

    messages: tuple[Message, ...] = ()
    learnt: tuple[bool, ...] = ()
    tools: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    prompt: str | None = None
    completion: str = ""

    def __hash__(self) -> int:
        return hash(json.dumps([self.messages, self.prompt, self.completion], default=str))


@dataclass
class Reading:
    """What was read from a table.

    Attributes:
        dialogues: dialogue of each row; None for rows without anything to learn, (N,).
        layout: the layout, with the form of the messages.
        notes: what was left out, each with its count.
    """

    dialogues: list[Dialogue | None]
    layout: DataLayout
    notes: list[str]


def read_dialogues(layout: DataLayout, table: Table) -> Reading:
    """Return the dialogue in each row of a table.

    Raises:
        RequestError: a cell holds something else; the message names the rows.
    """
    if layout.data_format == "text":
        texts = table.texts(layout.columns["text"])
        return Reading([Dialogue(prompt="", completion=text) for text in texts], layout, [])
    if layout.data_format in ("messages", "chats"):
        reading = _read_chats(layout, table)
    else:
        reading = _read_answers(layout, table)
    if all(dialogue is None for dialogue in reading.dialogues):
        reasons = "; ".join(reading.notes)
        raise RequestError(f"{str(table.path)!r} has nothing to learn: {reasons}")
    return reading


def _read_chats(layout: DataLayout, table: Table) -> Reading:
    """Read columns of messages."""
    columns = layout.columns
    if layout.data_format == "messages":
        conversations = _parse(table, columns["messages"], _answered_conversation)
        prompts: list[Conversation] = []
    else:
        prompts = _parse(table, columns["prompt"], lambda cell: read_conversation(cell, "user"))
        conversations = _parse(table, columns["completion"], _read_completion)
        conversations = [_join(*pair) for pair in zip(prompts, conversations, strict=True)]
    extras, own_system = _Extras(layout, table), 0
    dialogues: list[Dialogue | None] = []
    for row, conversation in enumerate(conversations):
        messages, learnt = conversation.messages, conversation.learnt
        system = extras.system[row]
        own_system += system is not None and messages[0]["role"] == "system"
        if system is not None and messages[0]["role"] != "system":
            messages, learnt = [{"role": "system", "content": system}, *messages], [False, *learnt]
        dialogue = Dialogue(tuple(messages), tuple(learnt), *extras.for_template(row))
        dialogues.append(dialogue if any(learnt) else None)
    notes = _notes(conversations, dialogues)
    if own_system:
        column = columns["system"]
        notes.append(
            f"{own_system} dialogues keep their own system message, not that of {column!r}"
        )
    cells = [cell for name in ("messages", "completion") for cell in _column(table, columns, name)]
    form = replace(
        layout,
        keys=tuple(_union(conversation.keys for conversation in conversations)),
        roles=_role_names(conversations),
        as_text=any(isinstance(cell, str) for cell in cells),
        rewritten=tuple(_union(conversation.rewritten for conversation in conversations)),
    )
    return Reading(dialogues, form, notes)


def _answered_conversation(cell: object) -> Conversation:
    conversation = read_conversation(cell)
    if not any(message["role"] == "assistant" for message in conversation.messages):
        raise BadMessages("no messages")
    return conversation


def _read_completion(cell: object) -> Conversation:
    if is_empty(cell):
        return Conversation([{"role": "assistant", "content": ""}], [False], empty=1)
    return read_conversation(cell, "assistant")


def _join(prompt: Conversation, completion: Conversation) -> Conversation:
    """Return a prompt and its completion as one conversation; only the completion is learnt."""
    if not any(message["role"] == "assistant" for message in completion.messages):
        raise BadMessages("no answer")
    # The first answer of a completion opens no dialogue.
    first = completion.greeting or completion.learnt[0]
    return Conversation(
        messages=[*prompt.messages, *completion.messages],
        learnt=[*[False] * len(prompt.messages), first, *completion.learnt[1:]],
        keys={**prompt.keys, **completion.keys},
        roles={
            role: {**prompt.roles.get(role, {}), **completion.roles.get(role, {})}
            for role in {**prompt.roles, **completion.roles}
        },
        rewritten={**prompt.rewritten, **completion.rewritten},
        hidden=completion.hidden,
        empty=completion.empty,
    )


def _read_answers(layout: DataLayout, table: Table) -> Reading:
    """Read columns of texts: a question or an instruction, and its answer."""
    columns = layout.columns
    is_alpaca = layout.data_format == "alpaca"
    questions = table.texts(columns["instruction" if is_alpaca else "prompt"])
    answers = _optional_texts(table, columns["output" if is_alpaca else "completion"])
    further = _optional_texts(table, columns.get("input" if is_alpaca else "context"))
    extras = _Extras(layout, table)
    dialogues: list[Dialogue | None] = []
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text, system, past = further[row], extras.system[row], extras.history[row]
        if is_alpaca:
            turn = question if text is None else f"{question}\n\n{text}"
            form = ALPACA if text is None else ALPACA_WITH_INPUT
            prompt: str | None = form.format(instruction=question, input=text)
        else:
            turn = prompt = question if text is None else f"{text}\n\n{question}"
        if system is not None:
            prompt = f"{system}\n\n{prompt}"
        if past or extras.tools[row]:
            prompt = None  # only a chat template can write these
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        messages += [*past, {"role": "user", "content": turn}]
        messages.append({"role": "assistant", "content": answer})
        if not is_alpaca and not layout.is_chat:
            messages = []
        learnt = [_is_answer(message) for message in messages]
        template = extras.for_template(row)
        dialogue = Dialogue(tuple(messages), tuple(learnt), *template, prompt, answer or "")
        dialogues.append(dialogue if answer is not None else None)
    lost = dialogues.count(None)
    notes = [f"{lost} of {len(dialogues)} rows are left out: their answer is empty"] if lost else []
    return Reading(dialogues, layout, notes)


class _Extras:
    """Parts of each row's dialogue that have columns of their own, (N,) each."""

    def __init__(self, layout: DataLayout, table: Table) -> None:
        extras = layout.extras
        self.system = _optional_texts(table, extras.get("system"))
        self.history = _optional(table, extras.get("history"), _read_history, [])
        self.tools = _optional(table, extras.get("tools"), read_tools, [])
        self.options = _optional(table, extras.get("template options"), _read_options, {})

    def for_template(self, row: int) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
        """Return a row's tools and further variables of the chat template."""
        return tuple(self.tools[row]), tuple(self.options[row].items())


def _optional(
    table: Table, column: str | None, read: Callable[[object], Any], missing: Any
) -> list[Any]:
    if column is None:
        return [missing] * len(table)
    return _parse(table, column, lambda cell: missing if is_empty(cell) else read(cell))


def _optional_texts(table: Table, column: str | None) -> list[str | None]:
    """Return a column of texts, None where it is empty."""
    return _optional(table, column, _read_text, None)


def _read_text(cell: object) -> str:
    if not isinstance(cell, str):
        raise BadMessages("not a text", "allowed are texts")
    return cell


def _read_history(cell: object) -> list[Message]:
    """Return the earlier turns of a dialogue: pairs of question and answer, or messages."""
    turns = parse_cell(cell)
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return read_conversation(turns).messages
    is_pair = [isinstance(turn, list) and len(turn) == 2 for turn in turns or ()]
    if not isinstance(turns, list) or not all(is_pair):
        raise BadMessages("no history", "allowed are lists such as [['question', 'answer']]")
    roles = ("user", "assistant")
    return [
        {"role": role, "content": _read_text(text)}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]


def _read_options(cell: object) -> dict[str, Any]:
    options = parse_cell(cell)
    if not isinstance(options, dict):
        raise BadMessages("no mapping", "allowed are variables of the chat template, by name")
    return options


def _parse(table: Table, column: str, read: Callable[[object], Any]) -> list[Any]:
    """Read every cell of a column; refuse it with the first kind of fault, and all its rows."""
    values: list[Any] = []
    faults: list[BadMessages | None] = []
    for cell in table.cells(column):
        try:
            values.append(read(cell))
            faults.append(None)
        except BadMessages as fault:
            faults.append(fault)
    first = next((fault for fault in faults if fault is not None), None)
    if first is not None:
        good = [fault is None or fault.fault != first.fault for fault in faults]
        table.refuse_bad_rows(column, good, first.fault, first.allowed)
    return values


def _notes(
    conversations: Sequence[Conversation], dialogues: Sequence[Dialogue | None]
) -> list[str]:
    """Return what is not learnt of the answers, each kind with its count."""
    answers = sum(
        _is_answer(message) for conversation in conversations for message in conversation.messages
    )
    empty = sum(conversation.empty for conversation in conversations)
    hidden = sum(conversation.hidden for conversation in conversations)
    greetings = sum(conversation.greeting for conversation in conversations)
    lost = sum(dialogue is None for dialogue in dialogues)
    counts = {
        f"{empty} of {answers} answers are empty and not learnt": empty,
        f"{hidden} of {answers} answers are not learnt, by their weights or masks": hidden,
        f"{greetings} of {answers} answers open a dialogue and are not learnt": greetings,
        f"{lost} of {len(dialogues)} dialogues are left out: no answer to learn": lost,
    }
    return [note for note, count in counts.items() if count]


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant"


def _column(table: Table, columns: Mapping[str, str], name: str) -> Sequence[Any]:
    return list(table.cells(columns[name])) if name in columns else ()


def _union(parts: Iterable[dict[Any, None]]) -> dict[Any, None]:
    """Return the keys of all parts, each once, in order."""
    return {key: None for part in parts for key in part}


def _role_names(conversations: Sequence[Conversation]) -> dict[str, tuple[str, ...]]:
    roles: dict[str, dict[str, None]] = {}
    for conversation in conversations:
        for role, names in conversation.roles.items():
            roles.setdefault(role, {}).update(names)
    return {role: tuple(names) for role, names in roles.items()}
