"""Tables read from files, and their columns."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.readers import LABEL_NAMES, Table, read_table

TABLE = pd.DataFrame(
    {"text": ["one, two", 'a "quoted" word', "None", "naïve\tcafé"], "label": [0, 1, 0, 1]}
)


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".csv", lambda path: TABLE.to_csv(path, index=False)),
        (".tsv", lambda path: TABLE.to_csv(path, index=False, sep="\t")),
        (".jsonl", lambda path: TABLE.to_json(path, orient="records", lines=True)),
        (".parquet", lambda path: TABLE.to_parquet(path)),
    ],
)
def test_every_file_format_reads_the_same(
    tmp_path: Path, ending: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / f"data{ending}"
    write(path)
    table = read_table(path)
    assert table.texts("text") == list(TABLE["text"])
    assert table.labels("label") == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.csv", None, "no such file"),
        ("empty.csv", "", "is empty"),
        ("header.csv", "text,label\n", "has no rows"),
        ("data.docx", "x", "allowed endings"),
        ("broken.jsonl", '{"text": "a", "label": 1\n', "line 1 is no JSON"),
        ("broken.parquet", "not parquet", "is text, and no parquet"),
        ("broken.csv", 'a,b\n"1,2\n3', "record in line 2"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=words) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_columns_are_found_by_name_or_listed_when_absent() -> None:
    rows = pd.DataFrame({"Sentence": ["a"], "Sentiment": [1], "id": [7]})
    table = Table(rows, Path("x.csv"))
    assert table.pick_column(None, ("text", "sentence"), "text") == "Sentence"
    assert table.pick_column(None, LABEL_NAMES, "label") == "Sentiment"
    assert table.pick_column("id", LABEL_NAMES, "label") == "id"
    with pytest.raises(
        RequestError, match=r"'Sentance'.*did you mean 'Sentence'.*Sentence, Sentiment, id"
    ):
        table.pick_column("Sentance", ("text",), "text")
    with pytest.raises(RequestError, match=r"text_column.*Sentence, Sentiment, id"):
        table.pick_column(None, ("text",), "text")


def test_blanks_around_a_column_name_do_not_hide_it() -> None:
    table = Table(pd.DataFrame({" Text": ["a"], "label ": [1]}), Path("x.csv"))
    assert table.pick_column(None, ("text",), "text") == " Text"
    assert table.pick_column(None, LABEL_NAMES, "label") == "label "


def test_missing_texts_name_their_rows() -> None:
    values = pd.Series(["a", None, "b", 3, "  "], name="text", dtype=object)
    with pytest.raises(RequestError, match=r"3 of 5 rows \(row 2, 4, 5\)"):
        Table(values.to_frame(), Path("x.csv")).texts("text")


def test_labels_become_class_names_whatever_their_type() -> None:
    assert labels_of([0, 1]) == ["0", "1"]
    assert labels_of([0.0, 1.0]) == ["0", "1"]
    assert labels_of(["pos", "neg"]) == ["pos", "neg"]
    with pytest.raises(RequestError, match=r"row 2, 3"):
        labels_of([1.0, 0.5, float("nan")])
    with pytest.raises(RequestError, match=r"row 2"):
        labels_of(["a", None])


def labels_of(values: list[object]) -> list[str]:
    return Table(pd.DataFrame({"label": pd.Series(values)}), Path("x.csv")).labels("label")
