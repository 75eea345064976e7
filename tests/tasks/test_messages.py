"""Messages as other tools write them."""

import json
from typing import Any

import pytest
from trl.data_utils import maybe_convert_to_chatml

from rankwise.tasks.messages import (
    BadMessages,
    holds_messages,
    read_conversation,
    read_tools,
)

CALL = {"name": "get_weather", "arguments": {"city": "rome"}}
CALLS = [{"type": "function", "function": CALL}]


def two(user: str, assistant: str) -> list[dict[str, Any]]:
    return [{"role": user, "content": "q"}, {"role": assistant, "content": "a"}]


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("user", "assistant"),
        ("User", "Assistant"),
        ("HUMAN", "GPT"),
        ("human", "gpt"),
        ("user", "model"),
        ("human", "ai"),
        ("prompter", "assistant"),
        ("user", "chatgpt"),
        ("human", "bot"),
        ("USER", "Chatbot"),
    ],
)
def test_roles_of_other_tools_are_mapped(user: str, assistant: str) -> None:
    found = read_conversation(two(user, assistant))
    assert found.messages == two("user", "assistant")
    assert found.learnt == [False, True]
    assert found.roles == {"user": {user: None}, "assistant": {assistant: None}}


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(BadMessages, match="unknown role 'narrator'") as refusal:
        read_conversation(two("narrator", "assistant"))
    assert "assistant (assistant, gpt" in refusal.value.allowed


def test_sharegpt_is_read_as_trl_converts_it() -> None:
    turns = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a", "name": "Bo"}]
    converted = maybe_convert_to_chatml({"conversations": [dict(turn) for turn in turns]})
    assert read_conversation(turns).messages == converted["messages"]


@pytest.mark.parametrize(
    "turns",
    [
        [{"user": "q", "assistant": "a"}],  # ms-swift
        [{"human": "q"}, {"gpt": "a"}],
        [{"type": "human", "content": "q"}, {"type": "ai", "content": "a"}],  # LangChain
        [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": ["a"]}],  # Gemini
        [{"role": "prompter", "text": "q"}, {"role": "assistant", "text": "a"}],  # OASST
        {"messages": two("user", "assistant"), "parallel_tool_calls": False},  # OpenAI's request
    ],
)
def test_other_spellings_of_a_dialogue(turns: Any) -> None:
    assert read_conversation(turns).messages == two("user", "assistant")
    assert read_conversation(json.dumps(turns)).messages == two("user", "assistant")
    assert read_conversation(str(turns)).messages == two("user", "assistant")


def test_text_parts_are_joined_and_others_are_refused_by_name() -> None:
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": " b"}]
    turns = two("user", "assistant")
    turns[1]["content"] = parts
    found = read_conversation(turns)
    assert found.messages[1]["content"] == "a b"
    assert "content in parts" in found.rewritten
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}):
        turns[0]["content"] = [parts[0], part]
        with pytest.raises(BadMessages, match=f"a part of type '{part['type']}'"):
            read_conversation(turns)


def test_every_key_of_a_message_is_kept() -> None:
    turns = two("user", "assistant")
    turns[0]["name"] = "Ann"
    turns[1] |= {"reasoning_content": "r", "thinking": "t"}
    assert read_conversation(turns).messages == turns


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "assistant", "tool_calls": json.dumps(CALLS)},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "tool_calls": [
                {"type": "function", "function": {**CALL, "arguments": '{"city": "rome"}'}}
            ],
        },
        {"role": "assistant", "content": None, "function_call": CALL},  # OpenAI's older form
        {"from": "function_call", "value": json.dumps(CALL)},  # LLaMA-Factory
        {"from": "function_call", "value": json.dumps([CALL])},
        {"role": "tool_call", "content": str(CALL)},  # ms-swift
    ],
)
def test_calls_reach_the_template_in_one_form(message: dict[str, Any]) -> None:
    found = read_conversation([{"role": "user", "content": "q"}, message])
    assert found.messages[1] == {"role": "assistant", "content": None, "tool_calls": CALLS}
    assert found.learnt == [False, True]


@pytest.mark.parametrize("role", ["tool", "observation", "function", "ipython", "tool_response"])
def test_results_of_tools_are_tool_messages(role: str) -> None:
    turns = [{"role": role, "content": {"temp": 3}, "tool_call_id": "1"}]
    (message,) = read_conversation(turns).messages
    assert message == {"role": "tool", "content": '{"temp": 3}', "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("key", "value", "learnt"),
    [
        *((key, 0, [False, False]) for key in ("weight", "loss_mask", "train", "trainable")),
        ("training", False, [False, False]),
        ("loss", False, [False, False]),
        ("masked", True, [False, False]),
        ("weight", 1, [False, True]),  # OpenAI gives weights to answers only
        ("loss", True, [False, True]),
        *((key, True, [True, True]) for key in ("training", "train", "trainable", "loss_mask")),
        ("masked", False, [True, True]),
        ("train", "true", [True, True]),
        ("weight", None, [False, True]),
    ],
)
def test_flags_decide_what_is_learnt(key: str, value: Any, learnt: list[bool]) -> None:
    turns = [{**message, key: value} for message in two("user", "assistant")]
    found = read_conversation([{"role": "user", "content": "first"}, *turns])
    assert found.learnt[1:] == learnt
    assert all(key not in message for message in found.messages)
    assert found.hidden == (not learnt[1])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"weight": 0.5}, "weight 0.5 in a message"),
        ({"training_detail": [{"train": True}]}, "'training_detail' in a message"),
        ({"content": [{"type": "text", "text": "a", "train": False}]}, "a weight of a part"),
    ],
)
def test_partial_weights_are_refused(more: dict[str, Any], words: str) -> None:
    turns = two("user", "assistant")
    turns[1] |= more
    with pytest.raises(BadMessages, match=words):
        read_conversation(turns)


def test_empty_answers_are_counted_and_not_learnt() -> None:
    turns = [*two("user", "assistant"), {"role": "assistant", "content": " "}]
    found = read_conversation(turns)
    assert (found.learnt, found.empty) == ([False, True, False], 1)
    turns[2] |= {"reasoning_content": "so"}
    assert read_conversation(turns).learnt == [False, True, True]


def test_messages_without_content_or_role_are_refused() -> None:
    for turns in ([{"role": "user", "content": None}], [{"content": "q"}], ["q"], [], None, "q"):
        with pytest.raises(BadMessages):
            read_conversation(turns)
    assert not holds_messages(two("user", "user"))
    assert holds_messages(two("user", "assistant"))


@pytest.mark.parametrize(
    "spell", [list, json.dumps, str, lambda tools: list(map(json.dumps, tools))]
)
def test_tools_are_functions_in_every_spelling(spell: Any) -> None:
    bare = {"name": "f", "parameters": {"type": "object"}}
    whole = {"type": "function", "function": bare}
    assert read_tools(spell([bare])) == read_tools(spell([whole])) == [whole]


def test_what_is_no_tool_is_refused() -> None:
    for cell in ("hammer", [3], "[3]"):
        with pytest.raises(BadMessages, match="tool"):
            read_tools(cell)
