"""What of a dialogue a tokenizer's chat template leaves out, found by rendering without it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rankwise.errors import some
from rankwise.tasks.base import Examples
from rankwise.tasks.chats import Chat, marks_assistant_tokens
from rankwise.tasks.messages import MESSAGE_KEYS, Message

CHECKED = 1000  # dialogues; each is rendered once more for every key of its messages


def template_notes(examples: Examples, tokenizer: Any) -> list[str]:
    """Return what a chat template leaves out of dialogues, each kind with its count.

    Raises:
        RequestError: the template refuses a dialogue.
    """
    if not tokenizer.chat_template:
        return []
    given: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    answers = unlearnt = checked = 0
    for row, dialogue in zip(examples.ids, examples.inputs, strict=True):
        if not dialogue.messages or checked == CHECKED:
            continue
        checked += 1
        chat = Chat(dialogue, tokenizer, row)
        for name, is_written in _written(chat):
            given[name] += 1
            left_out[name] += not is_written
        if not marks_assistant_tokens(tokenizer, dialogue.tools):
            wanted = sum(dialogue.learnt)
            answers, unlearnt = answers + wanted, unlearnt + wanted - len(chat.spans())
    first = f", in the first {CHECKED} dialogues" if checked == CHECKED else ""
    counts = [f"{name} ({count} of {given[name]})" for name, count in left_out.items() if count]
    notes = [f"the model's chat template leaves out: {some(counts, 12)}{first}"] if counts else []
    if unlearnt:
        notes.append(
            f"{unlearnt} of {answers} answers are not learnt{first}: the model's chat template "
            "writes them otherwise when more turns follow"
        )
    return notes


def _written(chat: Chat) -> Iterator[tuple[str, bool]]:
    """Yield the name of each part of a dialogue, and whether the template writes it."""
    messages = chat.messages
    marked = [
        {**m, "content": f"{m['content'] or ''}{_mark(place)}"} for place, m in enumerate(messages)
    ]
    marked_text = chat.try_render(marked)
    for place, message in enumerate(messages):
        if message["content"] and marked_text is not None:
            yield f"content of role {message['role']}", _mark(place) in marked_text
        for key in message:
            if key not in MESSAGE_KEYS:
                without = {name: value for name, value in message.items() if name != key}
                yield f"{key} of role {message['role']}", _changes(chat, place, without)
    if chat.dialogue.tools:
        yield "tools", chat.try_render(messages, tools=None) != chat.text
    for name, value in chat.dialogue.options:
        others = (not value, None, "x")  # a variable may have the value that is its default
        changed = any(chat.try_render(messages, **{name: other}) != chat.text for other in others)
        yield f"{name} of chat_template_kwargs", changed


def _mark(place: int) -> str:
    """Return a text that no template writes by itself."""
    return f"<@{place}@>"


def _changes(chat: Chat, place: int, message: Message) -> bool:
    """Whether a message in place of another changes the text, or is refused."""
    messages = [*chat.messages[:place], message, *chat.messages[place + 1 :]]
    return chat.try_render(messages) != chat.text
