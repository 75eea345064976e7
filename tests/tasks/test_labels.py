"""Rows without a label, and rows with several."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.labels import keep_labelled, refuse_label_sets
from rankwise.tasks.load import load_task
from rankwise.tasks.readers import Table


def table(labels: list[Any]) -> Table:
    return Table(pd.DataFrame({"label": pd.Series(labels)}), Path("data.csv"))


def kept(labels: list[Any], **options: bool) -> list[str]:
    return keep_labelled(table(labels), "label", **options)[0].labels("label")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["a", "b", "", "  ", None], ["a", "b"]),
        (["a", "unlabelled", "Unlabeled", "b"], ["a", "b"]),
        ([1.0, 0.0, float("nan")], ["1", "0"]),
        ([0, 1, 2, -1], ["0", "1", "2"]),
        (["1", "2", "3", "-1"], ["1", "2", "3"]),
        ([0.0, 1.0, 2.0, -1.0], ["0", "1", "2"]),
        (["good", "bad", "-1"], ["good", "bad"]),
        # classes of their own
        ([-1, 1], ["-1", "1"]),
        ([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"]),
        ([-1, 5, 10], ["-1", "5", "10"]),
        ([True, False], ["True", "False"]),
        (["yes", "no", "None", "NA"], ["yes", "no", "None", "NA"]),
        ([0.0, 1.0], ["0", "1"]),
        (["0", "1"], ["0", "1"]),
    ],
)
def test_rows_without_a_label_are_left_out(labels: list[Any], names: list[str]) -> None:
    assert kept(labels) == names


def test_the_rows_left_out_are_counted_and_the_others_keep_their_numbers() -> None:
    rows, (note,) = keep_labelled(table(["a", None, "unlabelled", "b", ""]), "label")
    assert (
        note == "3 of 5 rows have no label in column 'label' (blank, unlabelled) and are left out"
    )
    assert list(rows.rows.index) == [0, 3]
    with pytest.raises(RequestError, match="2 of 2 rows have no label"):
        keep_labelled(table([None, ""]), "label")
    with pytest.raises(RequestError, match=r"row 4"):
        rows.refuse_bad_rows("label", [True, False], "no label", "")


@pytest.mark.parametrize("labels", [[-1, 0, 1], [-1, 0], [-1, 1, 2]])
def test_minus_one_is_asked_about_and_either_answer_is_accepted(labels: list[int]) -> None:
    with pytest.raises(
        RequestError, match=r"-1 may be a class.*'negative', .* or with 'unlabelled'"
    ):
        kept(labels)
    others = [str(label) for label in labels[1:]]
    assert kept(["negative", *others]) == ["negative", *others]
    assert kept(["unlabelled", *others]) == others
    assert kept(labels, numbers=True) == ["-1", *others]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([["a"], ["a", "b"], []], "lists of labels"),
        ([(), ("a", "b")], "lists of labels"),
        ([np.array(["a", "b"]), np.array([])], "lists of labels"),
        ([{"a": True, "b": False}], "vectors of 0 and 1"),
        ([[0.0, 1.0, 1.0]], "vectors of 0 and 1"),
        ([np.array([0.0, 1.0])], "vectors of 0 and 1"),
        (["[]", '["a", "b"]', '["a"]'], "lists of labels"),
        (["['a']", "['a', 'b']"], "lists of labels"),
        (["('a', 'b')"], "lists of labels"),
        (["{'a', 'b'}"], "lists of labels"),
        (["['a' 'b']", "['c']"], "lists of labels"),
        (["[0. 1. 1.]"], "vectors of 0 and 1|lists of labels"),
        (["[a, b]", "[c]"], "lists of labels"),
        (["[1, 0, 1]"], "vectors of 0 and 1"),
        (["0 1 1", "1 0 0"], "vectors of 0 and 1"),
        (["a,b", "b,c", "a", "a, c"], "labels separated by commas"),
        (["a,b", "b,a"], "labels separated by commas"),
        (["a,b", "b,c", "a,c", "a,b,c"], "labels separated by commas"),
        (["a;b", "b", "a"], "labels separated by semicolons"),
        (["anger|joy", "joy|fear", "fear", "anger"], r"labels separated by '\|'"),
    ],
)  # fmt: skip
def test_several_labels_a_row_are_refused_in_any_spelling(labels: list[Any], words: str) -> None:
    with pytest.raises(RequestError, match=rf"holds ({words}), such as .*\(multi-label\) are not"):
        refuse_label_sets(table(labels), "label")


@pytest.mark.parametrize(
    "labels",
    [
        ["Arts, Crafts & Sewing", "Electronics", "Health, Beauty"],
        ["science|physics", "science|chemistry", "sport"],
        ["Portland, OR", "Portland, ME", "Augusta, ME", "Salem, OR"],
        ["[PAD]", "[laughs]"],
        ["{x}", "(a)"],
        [1, 2, None],
        ["yes", "no"],
        [True, False],
        ["1 2", "3"],
    ],
)
def test_names_of_classes_with_signs_in_them_are_no_sets(labels: list[Any]) -> None:
    refuse_label_sets(table(labels), "label")


def test_a_task_counts_the_rows_without_a_label(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = {"text": [f"text {n}" for n in range(42)], "label": [-1, None, *([0, 1] * 20)]}
    datasets.Dataset.from_dict(data, features).to_parquet(tmp_path / "data.parquet")
    task = load_task(DataConfig(data=tmp_path / "data.parquet"))
    assert any(
        "2 of 42 rows have no label in column 'label' (blank)" in note for note in task.notes
    )
    ids = sorted((*task.train.ids, *task.held_out.ids, *task.test.ids))
    assert ids == list(range(2, 42))
    held = load_task(
        DataConfig(
            data=tmp_path / "data.parquet",
            eval_data=tmp_path / "data.parquet",
            allow_duplicates=True,
        )
    )
    assert any(note.startswith("eval_data: 2 of 42") for note in held.notes)


def test_numbers_without_a_value_are_left_out_too(tmp_path: Path) -> None:
    scores = [None, *(n / 10 for n in range(-1, 39))]
    pd.DataFrame({"text": [f"t{n}" for n in range(41)], "score": scores}).to_csv(
        tmp_path / "x.csv", index=False
    )
    task = load_task(DataConfig(data=tmp_path / "x.csv"))
    assert sum(map(len, (task.train, task.held_out, task.test))) == 40
    assert any("1 of 41 rows have no label" in note for note in task.notes)


@pytest.mark.parametrize("name", ["data.parquet", "data.jsonl", "data.csv"])
def test_multi_label_files_are_refused_by_the_task(tmp_path: Path, name: str) -> None:
    lists = [["a"], [], ["a", "b"], ["b"]] * 10
    rows = pd.DataFrame({"text": [f"t{n}" for n in range(40)], "labels": lists})
    path = tmp_path / name
    if name == "data.parquet":
        rows.to_parquet(path)
    elif name == "data.csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_json(path, orient="records", lines=True)
    with pytest.raises(
        RequestError, match=r"several labels a row \(multi-label\) are not supported"
    ):
        load_task(DataConfig(data=path))
