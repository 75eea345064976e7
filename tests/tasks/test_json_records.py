"""Records of JSON texts in the shapes that people write."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.json_records import read_json_text

RECORDS = [{"text": "one", "label": "01"}, {"text": "2024-01-02", "label": "02"}]
TABLE = pd.DataFrame(RECORDS)
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"n": 1}]},
]
PATH = Path("data.json")


def read(text: str, key: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    rows, notes = read_json_text(text, PATH, key)
    return rows.to_dict("records"), notes


@pytest.mark.parametrize(
    "text",
    [
        TABLE.to_json(orient="records", lines=True),
        "\n\n" + TABLE.to_json(orient="records", lines=True).replace("\n", " \r\n\r\n"),
        TABLE.to_json(orient="records"),
        json.dumps(RECORDS, indent=2),
        "\n".join(json.dumps(record, indent=2) for record in RECORDS),
        "\n\ufeff".join(map(json.dumps, RECORDS)),
        TABLE.to_json(),
        TABLE.to_json(orient="split"),
        TABLE.to_json(orient="index"),
        json.dumps(TABLE.to_dict("list")),
        json.dumps({"data": RECORDS}),
    ],
)
def test_every_shape_gives_the_same_rows(text: str) -> None:
    assert read(text)[0] == RECORDS


def test_ordinary_records_are_what_datasets_reads(tmp_path: Path) -> None:
    records = [{"text": "one", "label": 1, "tags": ["a"]}, {"text": "two", "label": 0, "tags": []}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    assert (
        datasets.Dataset.from_json(str(path), cache_dir=tmp_path / "c").to_list()
        == read(path.read_text())[0]
    )


def test_values_stay_as_they_are_written() -> None:
    """The builder of datasets makes dates of the first texts, and 1 of the text "01"."""
    records = [
        {"date": "2024-01-02", "label": "01", "messages": TURNS, "n": 2**60},
        {"date": "2024-01-03", "label": 1, "messages": TURNS[:1], "n": 1},
    ]
    assert read("\n".join(map(json.dumps, records)))[0] == records


def test_texts_and_conversations_without_names_get_a_column() -> None:
    assert read('["one", "two"]')[0] == [{"text": "one"}, {"text": "two"}]
    assert read(json.dumps([TURNS, TURNS]))[0] == [{"messages": TURNS}] * 2
    assert read(json.dumps({"messages": TURNS}))[0] == [{"messages": TURNS}]


def test_records_are_found_under_a_key_and_the_rest_is_named() -> None:
    rows, notes = read(json.dumps({"version": "1", "data": RECORDS}))
    assert rows == RECORDS
    assert notes == ["records under the key 'data'; not read: version"]
    splits = json.dumps({"test": RECORDS[:1], "train": RECORDS})
    assert read(splits) == (RECORDS, ["records under the key 'train'; not read: test"])
    assert read(splits, "test")[0] == RECORDS[:1]


def test_several_keys_are_asked_about_and_the_advice_is_accepted() -> None:
    text = json.dumps({"first": RECORDS, "second": RECORDS[:1]})
    with pytest.raises(
        RequestError, match=r"several keys: first, second; name one .*'data.json:first'"
    ):
        read(text)
    assert read(text, "first")[0] == RECORDS
    with pytest.raises(RequestError, match=r"no records under 'secnd' \(did you mean 'second'"):
        read(text, "secnd")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{"a": 2}\n{"a": 3\n{"a": 4}', "line 3 is no JSON: "),
        ('{"a": 1\n{"a": 2}', "line 1 is no JSON: "),
        ('[{"a": 1},\n{"a": \n]', "line 3 is no JSON: "),
        ('{"a": 1},\n{"a": 2},\n', "line 1 is no JSON: "),
        ('{"a": 1}\n{"a": "cut', "line 2 is no JSON: "),
        ('{\n"a": 1\n}\n{\n"a" 2\n}', "line 5 is no JSON: "),
        ("[[1, 2], [3, 4]]", "record 1 is a list; allowed are objects"),
        ('[{"a": 1}, 2]', "record 2 is a int; allowed are objects"),
        ("3", "no records in it, only int"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_faults_are_named_with_their_line(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read(text)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('{"text": "a"}\n{"text": "\\ud83d"}\n', 2),
        ('[{"text": "\\ud83d\\ude00"}, {"a": {"\\ude00": 1}}]', 2),
        ('{"text": ["\\uDE00\\uD83D"]}', 1),
    ],
)
def test_half_of_a_character_is_refused_with_its_record(text: str, row: int) -> None:
    with pytest.raises(RequestError, match=rf"record {row} has half of a character"):
        read_json_text(text, Path("x.jsonl"), None)


def test_a_whole_character_in_two_escapes_is_read() -> None:
    rows, _ = read_json_text('{"text": "\\ud83d\\ude00"}\n' * 2, Path("x.jsonl"), None)
    assert list(rows["text"]) == ["\U0001f600"] * 2
