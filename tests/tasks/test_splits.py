from collections import Counter

import pytest

from rankwise.errors import RequestError
from rankwise.tasks.splits import stratified_sample, stratified_split


def test_parts_are_disjoint_complete_and_stratified() -> None:
    labels = ["a"] * 700 + ["b"] * 200 + ["c"] * 100
    parts = stratified_split(labels, [0.2, 0.1], seed=0)
    assert sorted(row for part in parts for row in part) == list(range(1000))
    assert [Counter(labels[row] for row in part) for part in parts] == [
        {"a": 490, "b": 140, "c": 70},
        {"a": 140, "b": 40, "c": 20},
        {"a": 70, "b": 20, "c": 10},
    ]


def test_the_seed_fixes_the_split() -> None:
    labels = ["a", "b"] * 50
    assert stratified_split(labels, [0.2], 0) == stratified_split(labels, [0.2], 0)
    assert stratified_split(labels, [0.2], 0) != stratified_split(labels, [0.2], 1)


def test_a_small_class_is_in_every_part_or_refused() -> None:
    labels = ["a"] * 50 + ["b"] * 3
    assert all(
        "b" in {labels[row] for row in part} for part in stratified_split(labels, [0.1, 0.1], 0)
    )
    with pytest.raises(RequestError, match=r"'b' has 2.*at least 3"):
        stratified_split(labels[:-1], [0.1, 0.1], 0)


def test_numbers_that_make_poor_classes_may_be_to_predict() -> None:
    with pytest.raises(
        RequestError,
        match=r"at least 3 examples .*; if these are numbers to predict: --task regress",
    ):
        stratified_split([str(number) for number in range(-20, 20)], [0.2, 0.1], 0)
    for labels in (["0", "1", "1", "1"], ["1", "2", "3", "4", "five"]):
        with pytest.raises(RequestError, match=r"parts$"):
            stratified_split(labels, [0.2, 0.1], 0)


def test_too_few_without_classes_are_counted() -> None:
    with pytest.raises(RequestError, match=r"^2 different dialogues: at least 3 are needed"):
        stratified_split(["", ""], [0.2, 0.1], 0, "different dialogues")


def test_a_part_keeps_shares_and_never_exceeds_its_size() -> None:
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


def test_a_part_of_even_classes_is_that_of_the_split() -> None:
    labels = ["a", "b"] * 50  # so that parts chosen by earlier versions stay as they are
    assert stratified_sample(labels, 20, 0) == stratified_split(labels, [0.2], 0)[1]
