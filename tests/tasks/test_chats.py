"""Dialogues in a chat template's words, held to transformers' and TRL's own rendering."""

import json
from pathlib import Path
from typing import Any

import pytest
from trl.data_utils import apply_chat_template

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded
from rankwise.tasks.chats import Chat
from rankwise.tasks.config import DataConfig
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.load import load_task
from rankwise.tasks.sft import encode
from rankwise.tasks.splits import number_examples
from tests.factories import chat
from tests.tasks.test_sft import CHATML, MARKED, TURNS, byte_level_tokenizer, supervised

# Tools, reasoning and calls, as Qwen's templates write them.
RICH = (
    "{% if tools %}<|start|>system\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is false %}(quick)\n{% endif %}{% endif %}"
)
# Writes null as the word None.
PRINTING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "{{ m.tool_calls | tojson }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# Fails without a content, as many templates that add texts do.
ADDING = PRINTING.replace("{{ m.content }}", "{{ m.content + '' }}")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "user", "content": "Say it."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}],
    },
    {"role": "tool", "content": "cold"},
    {"role": "assistant", "content": "Yes", "reasoning_content": "Why?"},
]


@pytest.fixture
def tokenizer() -> Any:
    made = byte_level_tokenizer()
    made.chat_template = RICH
    return made


def load_first(rows: list[dict[str, Any]], path: Path) -> Dialogue:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(DataConfig(data=file)).train.inputs[0]


def encode_one(dialogue: Dialogue, tokenizer: Any) -> Encoded:
    return encode(number_examples([dialogue], [None]), tokenizer, 500)[0]


def test_tools_calls_and_reasoning_are_written_as_transformers_writes_them(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"messages": CALLING, "tools": TOOLS, "n": row} for row in range(1)]
    rows += [
        {"messages": [{"role": "user", "content": f"{row}"}, *CALLING[1:]]} for row in range(9)
    ]
    (dialogue,) = [d for d in [load_first(rows, tmp_path)] if d.tools]
    encoded = encode_one(dialogue, tokenizer)
    whole = tokenizer.apply_chat_template(CALLING, tools=TOOLS, return_dict=True)
    assert encoded.input_ids[0] == whole["input_ids"]
    call = '<call>{"name": "weather", "arguments": {}}</call><|end|>'
    assert supervised(encoded, tokenizer) == [call, "<think>Why?</think>Yes<|end|>"]


def test_the_completion_of_messages_is_learnt_as_trl_splits_it(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": [*CALLING, {"role": "user", "content": f"Why {row}?"}],
            "completion": [{"role": "assistant", "content": "Because", "reasoning_content": "so"}],
            "chat_template_kwargs": {"enable_thinking": True},
        }
        for row in range(10)
    ]
    dialogue = load_first(rows, tmp_path)
    split = apply_chat_template(dict(rows[0]), tokenizer)
    (learnt,) = supervised(encode_one(dialogue, tokenizer), tokenizer)
    assert learnt == split["completion"].rstrip("\n")  # blanks after the end are not learnt


@pytest.mark.parametrize("template", [RICH, PRINTING, ADDING])
def test_null_content_beside_calls_suits_every_template(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    text = Chat(Dialogue(tuple(CALLING), (False, True, False, True)), tokenizer, 0).text
    assert "weather" in text
    assert "None" not in text


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_flags_decide_which_turns_are_learnt(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    first = chat(TURNS, learnt=(False, True, False, False))
    assert supervised(encode_one(first, tokenizer), tokenizer) == ["Yes:\n    indeed\n<|end|>"]
    question = chat(TURNS, learnt=(False, False, True, False))
    assert supervised(encode_one(question, tokenizer), tokenizer) == ["Why?<|end|>"]


def test_the_template_for_tools_is_used_if_there_is_one(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": CHATML, "tool_use": RICH}
    dialogue = chat(TURNS[:2], tools=tuple(TOOLS))
    assert "weather" in Chat(dialogue, tokenizer, 0).text
    assert "weather" not in Chat(chat(TURNS[:2]), tokenizer, 0).text


def test_errors_in_a_templates_own_code_name_the_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(RequestError, match="row 8: the model's chat template refuses"):
        _ = Chat(chat(TURNS), tokenizer, 7).text


def test_a_machine_out_of_memory_is_no_refusal_of_a_template(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(*arguments: Any, **options: Any) -> str:
        raise MemoryError

    monkeypatch.setattr(tokenizer, "apply_chat_template", render)
    with pytest.raises(MemoryError):
        Chat(chat(TURNS), tokenizer, 0).try_render([])
