"""The task that data and settings imply."""

from pathlib import Path

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective

TURNS = (
    ("user", "Say  it."),
    ("assistant", "Yes:\n    indeed\n"),
    ("user", "Why?"),
    ("assistant", "Because ünter 🙂!"),
)


def test_columns_imply_the_task_and_options_override_them(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table = pd.DataFrame(
        {"text": [f"t{n}" for n in range(20)], "label": [0, 1] * 10, "q": "x", "answer": "y"}
    )
    table.to_csv(path, index=False)
    assert load_task(DataConfig(data=path)).objective.task_type == "SEQ_CLS"
    pairs = load_task(DataConfig(data=path, prompt_column="text"))
    assert pairs.objective.task_type == "CAUSAL_LM"
    assert pairs.train.inputs[0] == Dialogue(prompt="t0", completion="y")
    plain = load_task(
        DataConfig(data=path, task="sft", text_column="q", allow_duplicates=True, eval_data=path)
    )
    assert plain.train.inputs[0] == Dialogue(prompt="", completion="x")


def test_a_named_text_column_wins_over_instruction_columns(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.csv"
    columns = {
        name: [f"{name} {n}" for n in range(20)] for name in ("instruction", "output", "text")
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    task = load_task(DataConfig(data=path, task="sft", text_column="text"))
    assert task.train.inputs[0] == Dialogue(prompt="", completion="text 0")
    with pytest.raises(RequestError, match="text_column 'txt' is not in"):
        load_task(DataConfig(data=path, task="sft", text_column="txt"))
    with pytest.raises(RequestError, match="text_column 'text' and prompt_column 'instruction'"):
        load_task(
            DataConfig(data=path, task="sft", text_column="text", prompt_column="instruction")
        )
    with pytest.raises(RequestError, match="messages_column 'text' and completion_column 'output'"):
        load_task(DataConfig(data=path, messages_column="text", completion_column="output"))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("sft", "text_pair_column"),
        ("sft", "label_column"),
        ("classification", "messages_column"),
        ("regression", "completion_column"),
    ],
)
def test_column_options_that_a_task_does_not_read_are_refused(
    task: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    columns = {name: [f"{name} {n}" for n in range(20)] for name in ("text", "more")}
    pd.DataFrame({**columns, "label": [0.5, 1.5] * 10}).to_csv(path, index=False)
    with pytest.raises(RequestError, match=f"{name} 'more' is not read for task {task}"):
        load_task(DataConfig(data=path, task=task, text_column="text", **{name: "more"}))


@pytest.mark.parametrize("label", ["category", "score", "rating", "sentiment"])
def test_instruction_data_beside_labels_implies_sft(label: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    turns = [{"role": role, "content": content} for role, content in TURNS]
    labels = (
        [row % 2 + 0.5 for row in range(20)]
        if label == "rating"
        else [str(row % 2) for row in range(20)]
    )
    for columns in (
        {"messages": [[*turns, {"role": "assistant", "content": f"{row}"}] for row in range(20)]},
        {
            "instruction": [f"say {row}" for row in range(20)],
            "input": [""] * 20,
            "output": ["yes"] * 20,
        },
    ):
        pd.DataFrame({**columns, label: labels}).to_json(path, orient="records", lines=True)
        assert load_task(DataConfig(data=path)).layout.data_format == (
            "messages" if "messages" in columns else "alpaca"
        )


def test_labels_that_are_named_or_beside_plain_texts_imply_classification(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    texts = [f"say {row}" for row in range(20)]
    alpaca = pd.DataFrame(
        {"instruction": texts, "output": ["yes"] * 20, "category": ["a", "b"] * 10}
    )
    alpaca.to_csv(path, index=False)
    for named in (
        {"text_column": "instruction"},
        {"text_column": "instruction", "label_column": "category"},
    ):
        assert load_task(DataConfig(data=path, **named)).objective == ClassificationObjective(
            ("a", "b")
        )
    for name in ("conversation", "dialogue"):
        pd.DataFrame({"text": texts, name: range(20), "label": ["a", "b"] * 10}).to_csv(
            path, index=False
        )
        assert load_task(DataConfig(data=path)).objective == ClassificationObjective(("a", "b"))
    rated = pd.DataFrame(
        {"question": texts, "answer": ["yes"] * 20, "text": texts, "rating": ["a", "b"] * 10}
    )
    rated.to_csv(path, index=False)
    assert load_task(DataConfig(data=path)).objective == ClassificationObjective(("a", "b"))


def test_whole_numbers_are_classes_unless_the_task_is_regression(reviews: Path) -> None:
    assert load_task(DataConfig(data=reviews)).objective.score == "accuracy"
    task = load_task(DataConfig(data=reviews, task="regression"))
    assert set(task.train.labels) == {0.0, 1.0}
