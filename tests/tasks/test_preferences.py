"""Preference data are refused with advice, and the advice works."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def follow(advice: str) -> dict[str, str]:
    """Return the settings that a refusal's first piece of advice names."""
    words = shlex.split(advice.split(" name ")[1].split(";")[0])
    return {
        option[2:].replace("-", "_"): value
        for option, value in zip(words[::2], words[1::2], strict=False)
    }


USER, GOOD, BAD = message("user", "q"), message("assistant", "good"), message("assistant", "bad")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"question": "q", "system": "s", "chosen": "good", "rejected": "bad"},  # Orca DPO
        {"instruction": "q", "chosen": "good", "rejected": "bad"},  # LLaMA-Factory
        {"chosen": "q good", "rejected": "q bad"},  # HH-RLHF
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"conversations": [USER], "chosen": GOOD, "rejected": BAD},  # LLaMA-Factory
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_following_the_advice_learns_the_chosen_answers(
    row: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        json.loads(json.dumps(row).replace('"q"', f'"q{n}"').replace('"q ', f'"q{n} '))
        for n in range(10)
    ]
    path = write(rows, tmp_path)
    with pytest.raises(RequestError, match=r"preference data.*DPO") as refusal:
        load_task(DataConfig(data=path))
    assert "\n" not in str(refusal.value)
    task = load_task(DataConfig(data=path, **follow(str(refusal.value))))
    dialogue = task.train.inputs[0]
    text = json.dumps(dialogue.messages) + str(dialogue.prompt) + dialogue.completion
    assert "good" in text and "q" in text and "bad" not in text
    assert any("rejected" in note or "non_preferred" in note for note in task.notes)


def test_answers_labelled_true_or_false_are_not_all_learnt(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": n % 2 == 0} for n in range(20)]
    with pytest.raises(RequestError, match=r"unpaired preference data.*keep the rows") as refusal:
        load_task(DataConfig(data=write(rows, tmp_path)))
    good = write([row for row in rows if row["label"]], tmp_path)
    settings = follow(str(refusal.value).replace("and name", "; name").replace("answers, ", ""))
    assert len(load_task(DataConfig(data=good, **settings)).train) == 7


def test_whole_dialogues_and_named_columns_are_no_preference_data(tmp_path: Path) -> None:
    rows = [
        {"messages": [message("user", f"q{n}"), GOOD], "chosen": "good", "rejected": "bad"}
        for n in range(10)
    ]
    assert len(load_task(DataConfig(data=write(rows, tmp_path))).train) == 7
    rows = [{"chosen": f"text {n}", "rejected": "b", "label": n % 2} for n in range(20)]
    task = load_task(DataConfig(data=write(rows, tmp_path), text_column="chosen"))
    assert task.objective.task_type == "SEQ_CLS"
