from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode, sort_labels
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective
from rankwise.tasks.splits import stratified_split
from tests.conftest import make_reviews


def test_own_data_is_split_into_three(reviews: Path) -> None:
    task = load_task(DataConfig(data=reviews))
    assert (len(task.train), len(task.held_out), len(task.test)) == (84, 24, 12)
    assert task.objective.label_names == ("0", "1")
    table = pd.read_csv(reviews)
    for part in (task.train, task.held_out, task.test):
        assert list(part.inputs) == list(table["text"][list(part.ids)])
        assert [task.objective.label_names[label] for label in part.labels] == [
            str(x) for x in table["label"][list(part.ids)]
        ]


def test_train_examples_take_from_the_training_part_only(reviews: Path) -> None:
    whole = load_task(DataConfig(data=reviews))
    part = load_task(DataConfig(data=reviews, train_examples=20))
    assert len(part.train) == 20
    assert set(part.train.ids) < set(whole.train.ids)
    assert part.held_out == whole.held_out
    assert sum(part.train.labels) == 10


def test_train_examples_with_a_class_of_one_row(tmp_path: Path) -> None:
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


def test_held_out_data_of_its_own(reviews: Path, tmp_path: Path) -> None:
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
def test_data_that_cannot_serve(tmp_path: Path, table: pd.DataFrame, words: str) -> None:
    path = tmp_path / "data.csv"
    table.to_csv(path, index=False)
    with pytest.raises(RequestError, match=words):
        load_task(DataConfig(data=path))


def test_unseen_labels_and_missing_columns_in_held_out_data(reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "held.csv"
    make_reviews(10).assign(label=[0, 1, 2, 5, 0, 1, 0, 1, 0, 1]).to_csv(other, index=False)
    with pytest.raises(
        RequestError, match=r"labels that the training data lacks: 2, 5; known: 0, 1"
    ):
        load_task(DataConfig(data=reviews, eval_data=other))
    make_reviews(10).rename(columns={"text": "body"}).to_csv(other, index=False)
    with pytest.raises(RequestError, match=r"'text' is not in .*columns: body, label"):
        load_task(DataConfig(data=reviews, eval_data=other))


def test_labels_are_ordered_as_numbers_where_they_are() -> None:
    assert sort_labels({"10", "9", "-1"}) == ("-1", "9", "10")
    assert sort_labels({"b", "a", "10"}) == ("10", "a", "b")


def test_labels_of_one_value_have_an_order_too() -> None:
    many = {"0" * zeros + "1" for zeros in range(8)}  # a set's own order differs between processes
    assert sort_labels(many) == tuple(sorted(many))


def test_one_column_cannot_be_texts_and_labels(reviews: Path) -> None:
    with pytest.raises(RequestError, match=r"are both 'label' of .*name two columns: text, label"):
        load_task(DataConfig(data=reviews, text_column="label"))


def test_loss_and_score_against_scipy() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)) * 20
    labels = np.arange(50) % 3
    examples = Encoded(tuple(range(50)), [[1]] * 50, tuple(labels.tolist()))
    measured = ClassificationObjective(("a", "b", "c")).measure(
        torch.tensor(logits, dtype=torch.float32), examples
    )
    expected = -log_softmax(logits.astype(np.float32).astype(float), axis=1)[np.arange(50), labels]
    np.testing.assert_allclose(measured["loss"], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(measured["score"], logits.argmax(1) == labels)


def test_long_texts_are_cut_and_counted(tiny_model: Path, reviews: Path) -> None:
    from transformers import AutoTokenizer

    task = load_task(DataConfig(data=reviews))
    encoded, cut = encode(task.train, AutoTokenizer.from_pretrained(tiny_model), max_length=8)
    words = [len(text.split()) for text in task.train.inputs]
    assert cut == sum(count + 2 > 8 for count in words)  # [CLS] and [SEP]
    assert encoded.lengths == [min(8, count + 2) for count in words]


def test_copies_of_a_text_stay_in_one_part(tmp_path: Path) -> None:
    table = make_reviews(60).drop_duplicates("text")
    alone = tmp_path / "alone.csv"
    table.to_csv(alone, index=False)
    twice = tmp_path / "twice.csv"
    pd.concat([table, table, table.head(5)]).to_csv(twice, index=False)
    one, other = load_task(DataConfig(data=alone)), load_task(DataConfig(data=twice))
    parts = [set(part.inputs) for part in (other.train, other.held_out, other.test)]
    assert parts == [set(part.inputs) for part in (one.train, one.held_out, one.test)]
    assert sum(map(len, (other.train, other.held_out, other.test))) == 2 * len(table) + 5
    assert any(
        f"{len(table) + 5} of {2 * len(table) + 5} texts are copies" in note for note in other.notes
    )
    assert not any("copies" in note for note in one.notes)


def test_the_split_of_data_without_copies_is_the_plain_one(reviews: Path) -> None:
    table = pd.read_csv(reviews).drop_duplicates("text")
    table.to_csv(reviews, index=False)
    task = load_task(DataConfig(data=reviews))
    plain = stratified_split([str(label) for label in table["label"]], [0.2, 0.1], 0)
    assert [list(part.ids) for part in (task.train, task.held_out, task.test)] == plain


def test_held_out_texts_that_are_trained_on_are_refused_or_said(
    reviews: Path, tmp_path: Path
) -> None:
    other = tmp_path / "held.csv"
    pd.concat([make_reviews(30, seed=1), pd.read_csv(reviews).head(3)]).to_csv(other, index=False)
    with pytest.raises(
        RequestError, match=r"3 of its 33 texts are in the training data too; .*--allow-duplicates"
    ):
        load_task(DataConfig(data=reviews, eval_data=other))
    task = load_task(DataConfig(data=reviews, eval_data=other, allow_duplicates=True))
    assert len(task.held_out) == 33
    assert any("3 of its 33 texts" in note for note in task.notes)
