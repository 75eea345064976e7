"""Messages of one dialogue: every tool's names of keys and roles, as chat templates know them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwise.errors import shown
from rankwise.tasks.cells import SAVE_AS_JSON, parse_cell

Message = dict[str, Any]
MESSAGE_KEYS = ("role", "content")  # keys of a message in the format that every tool reads
ROLE_KEYS = ("role", "from", "speaker", "author", "type")  # the first that a message has counts
CONTENT_KEYS = ("content", "value", "text", "parts", "message")
CALL = "function_call"  # role of a message whose text is a call, as in LLaMA-Factory
ROLE_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "input"),
    "assistant": (
        "assistant", "gpt", "chatgpt", "model", "ai", "bot", "chatbot", "output", "llm", "bard",
        "bing", "claude", "gpt4", "gpt-4",
    ),
    "tool": (
        "tool", "function", "observation", "ipython", "tool_response", "tool_result",
        "function_response",
    ),
    CALL: (CALL, "tool_call"),
}  # fmt: skip
"""Names of each role in ShareGPT, OASST, Gemma, LangChain, LLaMA-Factory, ms-swift, torchtune."""

ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
FLAGS = {  # whether 1 also makes a message of the user learnt
    "weight": False,  # OpenAI, Mistral
    "loss": False,  # ms-swift
    "training": True,  # Axolotl
    "train": True,
    "trainable": True,
    "loss_mask": True,
    "masked": True,  # torchtune; 1 hides the message
}
"""Keys by which a message says whether its tokens are learnt."""
PARTIAL_FLAGS = ("training_detail", "train_detail")  # Axolotl's, for stretches of a message
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
CALLS_AS_TEXT = "function calls outside tool_calls"
TEXT_PARTS = ("text", "input_text", "output_text")

EXAMPLE = (
    "allowed is a list such as [{'role': 'user', 'content': '...'}, "
    "{'role': 'assistant', 'content': '...'}], with an assistant's message in it"
)


class BadMessages(ValueError):
    """A row's messages cannot be read.

    Attributes:
        fault: noun phrase, the same for all rows with this fault.
        allowed: clause that says what can be read.
    """

    def __init__(self, fault: str, allowed: str = EXAMPLE + SAVE_AS_JSON) -> None:
        super().__init__(fault)
        self.fault, self.allowed = fault, allowed


@dataclass
class Conversation:
    """The messages of one row, and how the row spelled them.

    Attributes:
        messages: role, content and every other key of each message, as a chat template gets them.
        learnt: whether each message's tokens are learnt.
        keys: the row's pairs of keys for role and content, in order.
        roles: the row's names for each role, in order.
        rewritten: phrases that name what chat templates would not have understood.
        hidden: number of answers that their own keys keep from being learnt.
        empty: number of answers without content.
        greeting: whether an answer opens the dialogue, which is therefore not learnt.
    """

    messages: list[Message] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    keys: dict[tuple[str, str], None] = field(default_factory=dict)
    roles: dict[str, dict[str, None]] = field(default_factory=dict)
    rewritten: dict[str, None] = field(default_factory=dict)
    hidden: int = 0
    empty: int = 0
    greeting: bool = False


def read_conversation(cell: object, role_of_text: str | None = None) -> Conversation:
    """Return the messages in a cell, which may be text in JSON or in Python's spelling.

    Args:
        cell: the messages, or one message.
        role_of_text: role of the one message that a plain text is; None to refuse plain texts.

    Raises:
        BadMessages: there are none, or one is malformed.
    """
    conversation = Conversation()
    for raw in _raw_messages(cell, role_of_text, conversation):
        _add(conversation, raw)
    return conversation


def holds_messages(value: object) -> bool:
    """Whether a cell holds messages, one of the assistant's among them."""
    try:
        messages = read_conversation(value).messages
    except BadMessages:
        return False
    return any(message["role"] == "assistant" for message in messages)


def read_tools(cell: object) -> list[Any]:
    """Return the tool definitions in a cell, each as a function, as chat templates expect them.

    Raises:
        BadMessages: the cell holds something else.
    """
    tools = parse_cell(cell)
    tools = [tools] if isinstance(tools, dict) else tools
    if tools is None:
        raise BadMessages("no list of tools", "allowed are lists, or JSON text" + SAVE_AS_JSON)
    parsed = [parse_cell(tool) for tool in tools]
    if not all(isinstance(tool, dict) for tool in parsed):
        raise BadMessages("a tool that is no mapping", "allowed are JSON schemas of functions")
    return [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool
        else tool
        for tool in parsed
    ]


def _raw_messages(
    cell: object, role_of_text: str | None, conversation: Conversation
) -> Iterator[Mapping[str, Any]]:
    parsed = parse_cell(cell)
    if isinstance(parsed, dict):  # one message, or a request of OpenAI's around the messages
        parsed = parsed.get("messages", [parsed])
    if parsed is None and role_of_text is not None and isinstance(cell, str) and cell.strip():
        parsed = [{"role": role_of_text, "content": cell}]
    if not isinstance(parsed, list) or not parsed:
        raise BadMessages("no messages")
    for message in parsed:
        if not isinstance(message, dict):
            raise BadMessages("no messages")
        if _key(message, ROLE_KEYS) is None and message and {*map(_lower, message)} <= set(ROLES):
            conversation.rewritten["turns named by their keys"] = None
            yield from ({"role": role, "content": text} for role, text in message.items())
        else:
            yield message


def _add(conversation: Conversation, raw: Mapping[str, Any]) -> None:
    """Add a message to the conversation under the names that chat templates know."""
    role_key = _key(raw, ROLE_KEYS)
    content_key = _key(raw, CONTENT_KEYS) or _usual_content_key(role_key)
    if role_key is None or not isinstance(raw[role_key], str):
        raise BadMessages("no messages")
    name = raw[role_key]
    role = ROLES.get(_lower(name))
    if role is None:
        known = ", ".join(f"{role} ({', '.join(names)})" for role, names in ROLE_NAMES.items())
        raise BadMessages(f"the unknown role {shown(name)}", f"rename it; known are {known}")
    flag = _read_flags(raw)
    others = {key: value for key, value in raw.items() if key not in (role_key, content_key)}
    others = {key: value for key, value in others.items() if key not in FLAGS}
    content = _read_content(raw.get(content_key), role, others)
    message: Message = {"role": role, "content": content, **others}
    if role == CALL:
        message = _call_message(content, others)
    elif "tool_calls" in others or CALL in others:
        _normalise_calls(message)
    if message["content"] is None and not message.get("tool_calls"):
        if message["role"] != "assistant":
            raise BadMessages(f"no content in a message of the role {role!r}")
        message["content"] = ""
    _note_spelling(conversation, raw, (role_key, content_key), role, flag)
    _note_learnt(conversation, message, flag)
    conversation.messages.append(message)


def _note_spelling(
    conversation: Conversation,
    raw: Mapping[str, Any],
    keys: tuple[str, str],
    role: str,
    flag: bool | None,
) -> None:
    """Record how a message was spelled, for configs of other tools."""
    name, content = raw[keys[0]], raw.get(keys[1])
    conversation.keys[keys] = None
    conversation.roles.setdefault(role, {})[name] = None
    if flag is not None:
        conversation.rewritten["weights or masks of messages"] = None
    if isinstance(content, list):
        conversation.rewritten["content in parts"] = None
    if role == CALL or CALL in raw:
        conversation.rewritten[CALLS_AS_TEXT] = None


def _note_learnt(conversation: Conversation, message: Message, flag: bool | None) -> None:
    """Record whether the message is learnt: the assistant's are, unless flags differ."""
    is_answer, is_first = message["role"] == "assistant", not conversation.messages
    is_wanted = is_answer if flag is None else flag
    is_blank = is_answer and not _holds_anything(message)
    conversation.hidden += is_answer and not is_wanted
    conversation.empty += is_wanted and is_blank
    conversation.greeting |= is_wanted and is_answer and is_first and not is_blank
    conversation.learnt.append(is_wanted and not is_blank and not (is_answer and is_first))


def _holds_anything(message: Message) -> bool:
    """Whether an answer has content, a call, reasoning, or anything else but a name."""
    keys = [key for key in message if key not in ("role", "name", "id")]
    values = (message[key] for key in keys)
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _read_flags(raw: Mapping[str, Any]) -> bool | None:
    """Return whether the message is to be learnt; None if it does not say."""
    for key in PARTIAL_FLAGS:
        if key in raw:
            raise BadMessages(
                f"{key!r} in a message", "rankwise learns whole messages: remove it, or use 'train'"
            )
    flags = []
    for key in FLAGS:
        if key not in raw:
            continue
        value = TRUTH.get(str(raw[key]).strip().lower())
        if value is None:
            raise BadMessages(f"{key} {shown(raw[key])} in a message", "allowed are 0 and 1")
        value = not value if key == "masked" else value
        role = ROLES.get(_lower(raw[_key(raw, ROLE_KEYS) or ""]))
        if not value or FLAGS[key] or role in ("assistant", CALL):
            flags.append(value)
    return all(flags) if flags else None


def _read_content(content: Any, role: str, others: Mapping[str, Any]) -> str | None:
    """Return a message's text: its text parts joined; None beside tool calls."""
    if content is None or isinstance(content, str):
        return content
    is_list = isinstance(content, list)
    if role == "tool" and not (is_list and all(_is_text_part(part) for part in content)):
        return json.dumps(content, ensure_ascii=False)  # what the tool returned, as an object
    if not is_list:
        raise BadMessages(f"content that is no text ({shown(content)})")
    for part in content:
        if not _is_text_part(part):
            kind = part.get("type", shown(part)) if isinstance(part, dict) else shown(part)
            raise BadMessages(
                f"content with a part of type {kind!r}",
                "rankwise trains on text alone: allowed are parts of type 'text'",
            )
        if isinstance(part, dict) and {"train", "weight"} & set(part):
            raise BadMessages(
                "a weight of a part of a message",
                "rankwise learns whole messages: give the weight to the message",
            )
    return "".join(part if isinstance(part, str) else part["text"] for part in content)


def _is_text_part(part: Any) -> bool:
    if isinstance(part, str):
        return True
    is_text = isinstance(part, dict) and isinstance(part.get("text"), str)
    return is_text and part.get("type", "text") in TEXT_PARTS


def _call_message(content: str | None, others: Mapping[str, Any]) -> Message:
    """Return the message of a call whose text is JSON; other text stays the answer's text."""
    calls = parse_cell(content)
    calls = [calls] if isinstance(calls, dict) else calls
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        return {"role": "assistant", "content": content, **others}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [_normalise_call(call) for call in calls],
        **others,
    }


def _normalise_calls(message: Message) -> None:
    """Bring a message's calls into the form of chat templates: arguments are mappings."""
    calls = message.pop("tool_calls", None)
    calls = parse_cell(calls) if isinstance(calls, str) else calls
    calls = [calls] if isinstance(calls, dict) else list(calls or ())
    legacy = message.pop(CALL, None)  # OpenAI's older key for one call
    legacy = parse_cell(legacy) if isinstance(legacy, str) else legacy
    calls += [legacy] if legacy else []
    if not all(isinstance(call, dict) for call in calls):
        raise BadMessages("a tool call that is no mapping", "allowed are OpenAI's tool_calls")
    if calls:
        message["tool_calls"] = [_normalise_call(call) for call in calls]


def _normalise_call(call: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(call)
    if "function" not in whole:
        function = {key: whole.pop(key) for key in ("name", "arguments") if key in whole}
        whole = {**whole, "type": "function", "function": function}
    function = whole["function"]
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        arguments = parse_cell(function["arguments"])
        if arguments is not None:
            whole["function"] = {**function, "arguments": arguments}
    return whole


def _key(message: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in message), None)


def _usual_content_key(role_key: str | None) -> str:
    return "value" if role_key == "from" else "content"


def _lower(name: object) -> str:
    return str(name).strip().lower()
