"""What chat templates leave out is found by rendering without it."""

from typing import Any

import pytest

from rankwise.tasks import template_check
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.splits import number_examples
from rankwise.tasks.template_check import template_notes
from tests.factories import chat
from tests.tasks.test_chats import CALLING, RICH, TOOLS
from tests.tasks.test_sft import CHATML, FORGETFUL, TURNS, byte_level_tokenizer

DIALOGUE = Dialogue(
    tuple({**m, "content": m["content"] or "", "name": "Bo"} for m in CALLING),
    (False, True, False, True),
    tuple(TOOLS),
    (("enable_thinking", False),),
)


def notes(template: str | None, *dialogues: Dialogue) -> list[str]:
    tokenizer: Any = byte_level_tokenizer()
    tokenizer.chat_template = template
    return template_notes(number_examples(dialogues, [None] * len(dialogues)), tokenizer)


def test_keys_tools_and_options_that_a_template_ignores_are_counted() -> None:
    (note,) = notes(CHATML, DIALOGUE, DIALOGUE)
    assert note.startswith("the model's chat template leaves out: ")
    for part in (
        "tool_calls of role assistant (2 of 2)",
        "reasoning_content of role assistant (2 of 2)",
        "name of role user (2 of 2)",
        "tools (2 of 2)",
        "enable_thinking of chat_template_kwargs (2 of 2)",
    ):
        assert part in note


def test_what_a_template_writes_is_not_named() -> None:
    names = RICH.replace("<|start|>{{ m.role }}", "<|start|>{{ m.role }}\n{{ m.name }}")
    names = names.replace("<|start|>assistant", "<|start|>assistant\nBo")
    names = names.replace("<|start|>system", "{{ enable_thinking }}<|start|>system")
    assert notes(names.replace("(quick)\n", ""), DIALOGUE) == []
    assert notes(CHATML, chat(TURNS)) == []
    assert notes(None, DIALOGUE) == []
    assert notes(CHATML, Dialogue(prompt="q", completion="a")) == []


def test_messages_of_a_role_that_a_template_skips_are_named() -> None:
    skipping = CHATML.replace("in messages %}", "in messages if m.role != 'system' %}")
    (note,) = notes(skipping, chat([("system", "s"), *TURNS]), chat(TURNS))
    assert note == "the model's chat template leaves out: content of role system (1 of 1)"


def test_answers_that_a_template_rewrites_are_counted() -> None:
    (note,) = notes(FORGETFUL, chat(TURNS), chat(TURNS[:2]))
    assert note.startswith("1 of 3 answers are not learnt: ")


def test_large_data_are_checked_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_check, "CHECKED", 2)
    (note,) = notes(CHATML, *[DIALOGUE] * 3)
    assert "tools (2 of 2)" in note
    assert note.endswith(", in the first 2 dialogues")
