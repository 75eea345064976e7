"""Instruction data in every format that tables hold it in."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.chat_formats import DataLayout
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from tests.factories import chat

MESSAGES = [
    [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
    for n in range(10)
]
SHAREGPT = [
    [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}] for n in range(10)
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize(
    ("column", "messages"), [("messages", MESSAGES), ("conversations", SHAREGPT)]
)
def test_messages_are_read_from_every_file_format(
    tmp_path: Path, ending: str, column: str, messages: list[Any]
) -> None:
    path, table = tmp_path / f"data{ending}", pd.DataFrame({column: messages})
    if ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif ending == ".parquet":
        table.to_parquet(path)
    else:
        pd.DataFrame({column: pd.Series(messages).map(pd.io.json.ujson_dumps)}).to_csv(
            path, index=False
        )
    task = load_task(DataConfig(data=path))
    assert (len(task.train), len(task.held_out), len(task.test)) == (7, 2, 1)
    for row, dialogue in zip(task.train.ids, task.train.inputs, strict=True):
        assert dialogue == chat((("user", f"q{row}"), ("assistant", f"a{row}")))
    assert task.notes == (f"messages from column {column!r} of data{ending}",)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (
            [*MESSAGES[:3], [{"role": "user", "content": "q"}]],
            r"no messages in 1 of 4 rows \(row 4\)",
        ),
        ([*MESSAGES[:3], "hello"], r"\(row 4\).*'role': 'assistant'"),
        ([*MESSAGES[:3], [{"role": "assistant", "content": 3}]], r"\(row 4\)"),
        ([*MESSAGES[:3], None], r"\(row 4\)"),
    ],
)
def test_malformed_messages_name_their_rows(
    tmp_path: Path, messages: list[Any], words: str
) -> None:
    path = tmp_path / "data.jsonl"
    pd.DataFrame({"messages": messages}).to_json(path, orient="records", lines=True)
    with pytest.raises(RequestError, match=words):
        load_task(DataConfig(data=path))


@pytest.mark.parametrize(
    ("rows", "settings", "layout"),
    [
        (
            [{"conversations": turns} for turns in SHAREGPT],
            {},
            DataLayout(
                "messages",
                {"messages": "conversations"},
                (("from", "value"),),
                {"user": ("human",), "assistant": ("gpt",)},
            ),
        ),
        (
            [{"Talk": str(turns).replace("'", '"')} for turns in (*MESSAGES[:5], *SHAREGPT[5:])],
            {"messages_column": "Talk"},
            DataLayout(
                "messages",
                {"messages": "Talk"},
                (("role", "content"), ("from", "value")),
                {"user": ("user", "human"), "assistant": ("assistant", "gpt")},
                as_text=True,
            ),
        ),
        (
            [{"Instruction": f"q{n}", "response": f"a{n}"} for n in range(10)],
            {},
            DataLayout("alpaca", {"instruction": "Instruction", "output": "response"}),
        ),
        (
            [{"question": f"q{n}", "say": f"a{n}"} for n in range(10)],
            {"completion_column": "say"},
            DataLayout("prompt-completion", {"prompt": "question", "completion": "say"}),
        ),
        (
            [{"content": f"t{n}"} for n in range(10)],
            {"task": "sft"},
            DataLayout("text", {"text": "content"}),
        ),
    ],
)
def test_the_layout_keeps_the_names_in_the_file(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], layout: DataLayout
) -> None:
    path = tmp_path / "data.jsonl"
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    assert load_task(DataConfig(data=path, **settings)).layout == layout
