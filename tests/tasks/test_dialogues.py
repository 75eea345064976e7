"""Dialogues read from tables: parts in columns of their own, and what is left out, counted."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.base import Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.load import load_task
from tests.factories import chat


def load(rows: list[dict[str, Any]], path: Path, **settings: Any) -> Task:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(DataConfig(data=file, **settings))


def first(task: Task) -> Dialogue:
    """Return the dialogue in the first row of the data."""
    parts = (task.train, task.held_out, task.test)
    found = {row: d for part in parts for row, d in zip(part.ids, part.inputs, strict=True)}
    return found[min(found)]


def turns(row: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"q{row}"}, {"role": "assistant", "content": f"a{row}"}]


def test_a_system_column_opens_each_dialogue_that_has_no_system_message(tmp_path: Path) -> None:
    rows = [{"messages": turns(row), "system": "be brief"} for row in range(10)]
    rows[0]["messages"] = [{"role": "system", "content": "own"}, *turns(0)]
    rows[1]["system"] = None
    task = load(rows, tmp_path)
    roles = {len(d.messages): d.messages[0] for d in task.train.inputs}
    assert {"role": "system", "content": "be brief"} in roles.values()
    assert first(task).messages[0]["content"] == "own"
    assert "1 dialogues keep their own system message, not that of 'system'" in task.notes
    assert task.notes[0].endswith("with system from 'system'")


@pytest.mark.parametrize("question", ["prompt", "question", "query"])
def test_system_and_history_make_chats_of_prompts(tmp_path: Path, question: str) -> None:
    rows = [
        {
            question: f"q{n}",
            "response": f"a{n}",
            "system_prompt": "s",
            "history": [["q", "a"], ["p", "b"]],
        }
        for n in range(10)
    ]
    dialogue = first(load(rows, tmp_path))
    past = [("user", "q"), ("assistant", "a"), ("user", "p"), ("assistant", "b")]
    expected = chat([("system", "s"), *past, ("user", "q0"), ("assistant", "a0")])
    assert (dialogue.messages, dialogue.learnt) == (expected.messages, expected.learnt)
    assert dialogue.prompt is None  # a model without a chat template is refused


def test_context_is_part_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "context": f"c{n}", "answer": f"a{n}"} for n in range(10)]
    task = load(rows, tmp_path)
    assert first(task) == Dialogue(prompt="c0\n\nq0", completion="a0")
    assert "with context from 'context'" in task.notes[0]


def test_dolly_is_alpaca_with_another_name_for_the_input(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"i{n}", "context": "c" * (n > 0), "response": "r", "category": "qa"}
        for n in range(10)
    ]
    task = load(rows, tmp_path)
    assert "### Input:\nc\n" in str(task.train.inputs[-1].prompt)
    assert "### Input" not in str(first(task).prompt)
    assert "columns that are not used: category (10 of 10 rows)" in task.notes


def test_alpaca_with_system_history_and_tools(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"i{n}", "input": "", "output": "o", "system": "s", "history": [["q", "a"]]}
        for n in range(10)
    ]
    dialogue = first(load(rows, tmp_path))
    roles = [message["role"] for message in dialogue.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert dialogue.learnt == (False, False, True, False, True)


def test_trls_conversational_prompt_completion_learns_the_completion(tmp_path: Path) -> None:
    past = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [
        {
            "prompt": [*past, turns(n)[0]],
            "completion": [turns(n)[1]],
            "chat_template_kwargs": {"enable_thinking": False},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
        for n in range(10)
    ]
    task = load(rows, tmp_path)
    dialogue = first(task)
    assert list(dialogue.messages) == [*past, *turns(0)]
    assert dialogue.learnt == (False, False, False, True)
    assert dialogue.options == (("enable_thinking", False),)
    assert dialogue.tools == ({"type": "function", "function": {"name": "f"}},)
    assert task.layout is not None and task.layout.data_format == "chats"


def test_a_prompt_or_a_completion_may_be_a_text_beside_messages(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": [turns(n)[1]]} for n in range(10)]
    assert list(first(load(rows, tmp_path)).messages) == turns(0)
    rows = [{"prompt": [turns(n)[0]], "completion": f"a{n}"} for n in range(10)]
    assert list(first(load(rows, tmp_path)).messages) == turns(0)


def test_empty_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": f"i{n}", "output": "o" if n else ""} for n in range(10)]
    task = load(rows, tmp_path)
    assert "1 of 10 rows are left out: their answer is empty" in task.notes
    assert sum(map(len, (task.train, task.held_out, task.test))) == 9
    rows = [{"messages": turns(n)} for n in range(10)]
    rows[0]["messages"] = [rows[0]["messages"][0], {"role": "assistant", "content": ""}]
    notes = load(rows, tmp_path).notes
    assert "1 of 10 answers are empty and not learnt" in notes
    assert "1 of 10 dialogues are left out: no answer to learn" in notes
    with pytest.raises(RequestError, match="nothing to learn: 10 of 10"):
        load([{"prompt": "q", "completion": None}] * 10, tmp_path)


def test_weights_and_greetings_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [*turns(n), *turns(n)]} for n in range(10)]
    rows[0]["messages"] = [{**message, "weight": 0} for message in turns(0)] + turns(0)
    rows[1]["messages"] = [{"role": "assistant", "content": "Hello!"}, *turns(1)]
    task = load(rows, tmp_path)
    assert "1 of 20 answers are not learnt, by their weights or masks" in task.notes
    assert "1 of 20 answers open a dialogue and are not learnt" in task.notes
    assert first(task).learnt == (False, False, False, True)


def test_columns_that_are_not_used_are_named_with_their_rows(tmp_path: Path) -> None:
    rows = [
        {"messages": turns(n), "id": n, "images": [] if n else ["x.png"], "empty": None}
        for n in range(10)
    ]
    notes = load(rows, tmp_path).notes
    assert "columns that are not used: id (10 of 10 rows), images (1 of 10 rows)" in notes


def test_columns_beside_texts_and_labels_are_named_too(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2, "id": n} for n in range(20)]
    assert load(rows, tmp_path).notes[-1] == "columns that are not used: id (20 of 20 rows)"


def test_a_column_of_a_parts_name_that_holds_something_else_is_not_used(tmp_path: Path) -> None:
    rows = [{"messages": turns(n), "system": n, "tools": "hammer"} for n in range(10)]
    notes = load(rows, tmp_path).notes
    assert "columns that are not used: system (10 of 10 rows), tools (10 of 10 rows)" in notes


def test_the_advice_to_save_lists_as_json_can_be_followed(tmp_path: Path) -> None:
    broken = pd.DataFrame({"messages": [f"[{turns(n)[0]}, array(3)]" for n in range(10)]})
    broken.to_csv(tmp_path / "broken.csv", index=False)
    with pytest.raises(RequestError, match=r"no messages in 10 of 10 rows.*json\.dumps"):
        load_task(DataConfig(data=tmp_path / "broken.csv"))
    fixed = pd.DataFrame({"messages": [json.dumps(turns(n)) for n in range(10)]})
    fixed.to_csv(tmp_path / "fixed.csv", index=False)
    assert list(first(load_task(DataConfig(data=tmp_path / "fixed.csv"))).messages) == turns(0)
