"""Examples before and after tokenisation."""

from dataclasses import replace

import numpy as np
import pytest

from rankwise.tasks.base import IGNORED, Encoded, Examples, Task, evidence_frame
from rankwise.tasks.classification import encode
from rankwise.tasks.losses import ClassificationObjective

DIALOGUES = Encoded(
    ids=(7, 9),
    input_ids=[[1, 2, 3, 4], [5, 6]],
    labels=([3, 4], [6]),
    positions=[[1, 2], [0]],
)
PAIRS = Encoded((0, 1), [[1, 2], [3]], (1, 0), token_type_ids=[[0, 1], [0]])


def test_examples_are_taken_in_the_order_of_the_rows() -> None:
    examples = Examples((4, 5, 6), ("a", "b", "c"), (0, 1, 0))
    assert examples.take([2, 0]) == Examples((6, 4), ("c", "a"), (0, 0))
    assert len(examples.take([])) == 0


@pytest.mark.parametrize("encoded", [DIALOGUES, PAIRS], ids=["dialogues", "pairs"])
def test_encoded_examples_are_taken_with_all_their_fields(encoded: Encoded) -> None:
    assert encoded.take([0, 1]) == encoded
    second = encoded.take([1])
    assert (second.ids, second.input_ids) == (encoded.ids[1:], encoded.input_ids[1:])
    assert second.features(0) == encoded.features(1)
    assert second.lengths == [len(encoded.input_ids[1])]


@pytest.mark.parametrize("encoded", [DIALOGUES, PAIRS], ids=["dialogues", "pairs"])
def test_a_digest_depends_on_all_that_training_sees(encoded: Encoded) -> None:
    changes = [
        {"ids": tuple(place + 1 for place in encoded.ids)},
        {"input_ids": [[*encoded.input_ids[0][:-1], 8], *encoded.input_ids[1:]]},
        {"labels": (encoded.labels[1], encoded.labels[0])},
        {"token_type_ids": [[1, 1], [0]]},
        {"positions": [[2, 2], [0]]},
        {"positions": []},
    ]
    digests = {replace(encoded, **change).digest() for change in changes}
    assert len(digests | {encoded.digest()}) == 1 + len(changes)
    moved = replace(encoded, input_ids=[[*encoded.input_ids[0], *encoded.input_ids[1]], []])
    assert moved.digest() != encoded.digest()  # the same tokens, in other examples
    assert replace(encoded).digest() == encoded.digest()
    assert Encoded((), [], ()).digest() == Encoded((), [], ()).digest()


def test_features_label_supervised_tokens_and_ignore_the_others() -> None:
    features = DIALOGUES.features(0)
    assert features["labels"] == [IGNORED, IGNORED, 3, 4]
    assert features["attention_mask"] == [1, 1, 1, 1]
    assert "token_type_ids" not in features


def test_features_of_a_pair_have_token_types() -> None:
    assert PAIRS.features(0)["token_type_ids"] == [0, 1]
    assert PAIRS.features(0)["labels"] == 1
    assert PAIRS.inputs() == {"input_ids": [[1, 2], [3]], "token_type_ids": [[0, 1], [0]]}
    assert DIALOGUES.inputs() == {"input_ids": DIALOGUES.input_ids}


def test_a_task_has_no_chance_loss_for_equal_labels() -> None:
    def chance_loss(labels: tuple[int, ...]) -> float | None:
        examples = Examples(tuple(range(len(labels))), ("a",) * len(labels), labels)
        objective = ClassificationObjective(("no", "yes"))
        return Task("task", objective, encode, examples, examples, examples).chance_loss

    assert chance_loss((1, 1, 1)) is None
    assert chance_loss((0, 1)) == pytest.approx(0.6931, abs=1e-4)


def test_the_evidence_frame_has_a_column_for_each_measure() -> None:
    frame = evidence_frame([3, 1], {"loss": np.array([0.5, 0.1]), "tokens": np.array([2.0, 4.0])})
    assert frame["example_id"].tolist() == [3, 1]
    assert frame["tokens"].tolist() == [2.0, 4.0]
