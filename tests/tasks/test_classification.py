"""Tables of texts and class labels, and their tokens."""

from pathlib import Path

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.classification import _index_labels, encode, sort_labels
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews


def test_a_table_is_split_in_three(reviews: Path) -> None:
    task = load_task(DataConfig(data=reviews))
    assert (len(task.train), len(task.held_out), len(task.test)) == (84, 24, 12)
    assert task.objective.label_names == ("0", "1")
    table = pd.read_csv(reviews)
    for part in (task.train, task.held_out, task.test):
        assert list(part.inputs) == list(table["text"][list(part.ids)])
        assert [task.objective.label_names[label] for label in part.labels] == [
            str(x) for x in table["label"][list(part.ids)]
        ]


def test_train_examples_limits_the_train_split_only(reviews: Path) -> None:
    whole = load_task(DataConfig(data=reviews))
    part = load_task(DataConfig(data=reviews, train_examples=20))
    assert len(part.train) == 20
    assert set(part.train.ids) < set(whole.train.ids)
    assert part.held_out == whole.held_out
    assert sum(part.train.labels) == 10


def test_train_examples_keeps_every_class(tmp_path: Path) -> None:
    """A class of three rows has one in each part."""
    path = tmp_path / "reviews.csv"
    reviews = make_reviews(63)
    reviews.loc[60:, "label"] = 2
    reviews.to_csv(path, index=False)
    task = load_task(DataConfig(data=path, train_examples=5))
    assert len(task.train) == 5
    assert set(task.train.labels) == {0, 1, 2}
    with pytest.raises(
        RequestError, match=r"^train_examples 2: the training data has 3 classes.*give 3 or more$"
    ):
        load_task(DataConfig(data=path, train_examples=2))


def test_eval_data_becomes_the_held_out_split(reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "held.jsonl"
    make_reviews(30, seed=1).astype({"label": str}).to_json(other, orient="records", lines=True)
    task = load_task(DataConfig(data=reviews, eval_data=other))
    assert (len(task.train), len(task.held_out), len(task.test)) == (120, 30, 0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"text": ["a", "b"], "label": [1, 1]}), "one class only"),
        (
            pd.DataFrame({"text": ["a", "b", "c", "d", "d", "d"], "label": [0, 0, 0, 1, 1, 1]}),
            r"'1' has 1.*different te",
        ),
        (pd.DataFrame({"text": [1, 2, 3], "label": [0, 1, 1]}), "not a text in 3 of 3 rows"),
    ],
)
def test_unusable_data_is_refused(tmp_path: Path, table: pd.DataFrame, words: str) -> None:
    path = tmp_path / "data.csv"
    table.to_csv(path, index=False)
    with pytest.raises(RequestError, match=words):
        load_task(DataConfig(data=path))


def test_eval_data_with_unseen_labels_or_missing_columns_is_refused(
    reviews: Path, tmp_path: Path
) -> None:
    other = tmp_path / "held.csv"
    make_reviews(10).assign(label=[0, 1, 2, 5, 0, 1, 0, 1, 0, 1]).to_csv(other, index=False)
    with pytest.raises(
        RequestError, match=r"labels that the training data lacks: 2, 5; known: 0, 1"
    ):
        load_task(DataConfig(data=reviews, eval_data=other))
    make_reviews(10).rename(columns={"text": "body"}).to_csv(other, index=False)
    with pytest.raises(RequestError, match=r"'text' is not in .*columns: body, label"):
        load_task(DataConfig(data=reviews, eval_data=other))


def test_labels_that_are_numbers_sort_by_value() -> None:
    assert sort_labels({"10", "9", "-1"}) == ("-1", "9", "10")
    assert sort_labels({"b", "a", "10"}) == ("10", "a", "b")


def test_labels_of_equal_value_sort_by_name() -> None:
    many = {"0" * zeros + "1" for zeros in range(8)}  # a set's own order differs between processes
    assert sort_labels(many) == tuple(sorted(many))


def test_one_column_as_text_and_label_is_refused(reviews: Path) -> None:
    with pytest.raises(RequestError, match=r"are both 'label' of .*name two columns: text, label"):
        load_task(DataConfig(data=reviews, text_column="label"))


def test_long_texts_are_truncated_and_counted(tiny_model: Path, reviews: Path) -> None:
    from transformers import AutoTokenizer

    task = load_task(DataConfig(data=reviews))
    encoded, cut = encode(task.train, AutoTokenizer.from_pretrained(tiny_model), max_length=8)
    words = [len(text.split()) for text in task.train.inputs]
    assert cut == sum(count + 2 > 8 for count in words)  # [CLS] and [SEP]
    assert encoded.lengths == [min(8, count + 2) for count in words]


def test_as_many_labels_as_rows_are_looked_up_at_once() -> None:
    labels = [str(number) for number in range(200_000)]
    names = sort_labels(set(labels))
    assert _index_labels(labels, labels[::-1], names).labels[:2] == (199_999, 199_998)
