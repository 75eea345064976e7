"""Losses and scores of the objectives."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from rankwise.tasks.base import Encoded
from rankwise.tasks.losses import (
    ROWS_AT_ONCE,
    ClassificationObjective,
    CompletionObjective,
    RegressionObjective,
)


def test_classification_measures_match_scipy() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3)) * 20
    labels = np.arange(50) % 3
    examples = Encoded(tuple(range(50)), [[1]] * 50, tuple(labels.tolist()))
    measured = ClassificationObjective(("a", "b", "c")).measure(
        torch.tensor(logits, dtype=torch.float32), examples
    )
    expected = -log_softmax(logits.astype(np.float32).astype(float), axis=1)[np.arange(50), labels]
    np.testing.assert_allclose(measured["loss"], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(measured["score"], logits.argmax(1) == labels)


def test_the_chance_loss_of_classes_is_the_entropy_of_their_shares() -> None:
    objective = ClassificationObjective(("a", "b"))
    assert objective.chance_loss([0, 1, 0, 1]) == pytest.approx(np.log(2))
    assert objective.chance_loss([0, 0, 0, 1]) == pytest.approx(entropy([0.75, 0.25]))


def test_regression_measures_are_in_shares_of_the_variance() -> None:
    labels = (1.0, 2.0, 6.0)
    examples = Encoded((0, 1, 2), [[1]] * 3, labels)
    objective = RegressionObjective(float(np.var(labels)))
    mean = torch.full((3, 1), 3.0)  # predicting the mean has a mean loss of 1 by definition
    measured = objective.measure(mean, examples)
    assert measured["loss"].mean() == pytest.approx(1)
    assert measured["loss"].mean() == pytest.approx(objective.chance_loss(labels))
    assert measured["score"].tolist() == [-2.0, -1.0, -3.0]
    assert objective.losses(mean, objective.targets(examples)).mean().item() == pytest.approx(
        np.var(labels)
    )


def test_completion_measures_are_means_over_the_tokens_of_each_example() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 11)) * 3
    examples = Encoded((0, 1), [[1] * 4, [1] * 3], ([4, 2, 9], [0, 10]))
    objective = CompletionObjective()
    measured = objective.measure(torch.tensor(logits), examples)
    losses = -log_softmax(logits, axis=1)[np.arange(5), [4, 2, 9, 0, 10]]
    np.testing.assert_allclose(measured["loss"], [losses[:3].mean(), losses[3:].mean()])
    np.testing.assert_array_equal(measured["tokens"], [3, 2])
    correct = logits.argmax(1) == [4, 2, 9, 0, 10]
    np.testing.assert_allclose(measured["score"], [correct[:3].mean(), correct[3:].mean()])
    losses_of_batch = objective.losses(torch.tensor(logits), objective.targets(examples))
    np.testing.assert_allclose(losses_of_batch, losses)


def test_losses_of_many_rows_are_those_of_each_row() -> None:
    """Rows are converted to float64 in chunks, which must not show."""
    count = 2 * ROWS_AT_ONCE + 3
    logits = torch.tensor(np.random.default_rng(1).normal(size=(count, 4)))
    examples = Encoded(tuple(range(count)), [[1]] * count, tuple([0, 1, 2] * count)[:count])
    measured = ClassificationObjective(("a", "b", "c", "d")).measure(logits, examples)
    expected = -log_softmax(logits.numpy(), axis=1)[np.arange(count), list(examples.labels)]
    np.testing.assert_allclose(measured["loss"], expected)
