"""Train, held-out and test splits."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.splits import stratified_sample, stratified_split
from tests.conftest import make_reviews


def test_splits_are_disjoint_complete_and_stratified() -> None:
    labels = ["a"] * 700 + ["b"] * 200 + ["c"] * 100
    parts = stratified_split(labels, [0.2, 0.1], seed=0)
    assert sorted(row for part in parts for row in part) == list(range(1000))
    assert [Counter(labels[row] for row in part) for part in parts] == [
        {"a": 490, "b": 140, "c": 70},
        {"a": 140, "b": 40, "c": 20},
        {"a": 70, "b": 20, "c": 10},
    ]


def test_equal_seeds_give_equal_splits() -> None:
    labels = ["a", "b"] * 50
    assert stratified_split(labels, [0.2], 0) == stratified_split(labels, [0.2], 0)
    assert stratified_split(labels, [0.2], 0) != stratified_split(labels, [0.2], 1)


def test_a_small_class_is_in_every_split_or_refused() -> None:
    labels = ["a"] * 50 + ["b"] * 3
    assert all(
        "b" in {labels[row] for row in part} for part in stratified_split(labels, [0.1, 0.1], 0)
    )
    with pytest.raises(RequestError, match=r"'b' has 2.*at least 3"):
        stratified_split(labels[:-1], [0.1, 0.1], 0)


def test_many_small_classes_of_whole_numbers_suggest_regression() -> None:
    with pytest.raises(
        RequestError,
        match=r"at least 3 examples .*; if these are numbers to predict: --task regress",
    ):
        stratified_split([str(number) for number in range(-20, 20)], [0.2, 0.1], 0)
    for labels in (["0", "1", "1", "1"], ["1", "2", "3", "4", "five"]):
        with pytest.raises(RequestError, match=r"parts$"):
            stratified_split(labels, [0.2, 0.1], 0)


def test_too_few_rows_without_classes_are_refused_with_their_number() -> None:
    with pytest.raises(RequestError, match=r"^2 different dialogues: at least 3 are needed"):
        stratified_split(["", ""], [0.2, 0.1], 0, "different dialogues")


def test_a_sample_keeps_the_shares_of_classes_within_its_size() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 9 + ["d"]
    assert Counter(labels[row] for row in stratified_sample(labels, 50, 0)) == {
        "a": 30,
        "b": 15,
        "c": 4,
        "d": 1,
    }
    for most in range(4, 100):
        rows = stratified_sample(labels, most, 0)
        kept = Counter(labels[row] for row in rows)
        assert len(rows) == len(set(rows)) <= most
        assert len(kept) == 4
        assert all(abs(kept[name] - most * labels.count(name) / 100) <= 1.5 for name in "ab")


def test_a_sample_of_even_classes_equals_the_split_of_that_size() -> None:
    labels = ["a", "b"] * 50  # so that parts chosen by earlier versions stay as they are
    assert stratified_sample(labels, 20, 0) == stratified_split(labels, [0.2], 0)[1]


def test_copies_of_a_text_stay_in_one_split(tmp_path: Path) -> None:
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


def test_data_without_copies_gets_the_stratified_split(reviews: Path) -> None:
    table = pd.read_csv(reviews).drop_duplicates("text")
    table.to_csv(reviews, index=False)
    task = load_task(DataConfig(data=reviews))
    plain = stratified_split([str(label) for label in table["label"]], [0.2, 0.1], 0)
    assert [list(part.ids) for part in (task.train, task.held_out, task.test)] == plain


def test_held_out_texts_that_are_also_trained_on_are_refused_or_noted(
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
