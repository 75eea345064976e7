"""Objectives of the three tasks: training loss, held-out loss and task score from logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rankwise.tasks.base import Encoded, Objective

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 256  # rows of logits over a vocabulary that are copied to float64 together


@dataclass(frozen=True)
class ClassificationObjective(Objective):
    """Classification: log-loss in nats, and accuracy. Labels are indices of ``label_names``."""

    label_names: tuple[str, ...]

    unit = "nats per example"
    chance = "guessing by the classes' shares"
    score = "accuracy"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the model config's number and names of classes."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {label: index for index, label in enumerate(self.label_names)},
        }

    def describe(self) -> str:
        """Return the number of classes in words."""
        return f"{len(self.label_names)} classes"

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the entropy of the classes' shares, nats per example."""
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the class indices, (N,)."""
        import torch

        return torch.tensor(examples.labels)

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's log-loss in nats, and 1.0 where the likeliest class is right."""
        return self.by_example(*_log_losses(logits, self.targets(examples)), examples)


@dataclass(frozen=True)
class RegressionObjective(Objective):
    """Regression: squared error as a share of the labels' variance, and negative absolute error.

    Models train by mean squared error on the labels as they are, so a saved adapter predicts in
    their units. PEFT has no task type for regression. The held-out loss is 1 for predicting the
    mean, and 1 minus its mean is R².

    Attributes:
        variance: variance of the training labels.
    """

    variance: float

    unit = "of the labels' variance"
    chance = "guessing the labels' mean"
    score = "negative absolute error"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the model config's single output, trained by squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def describe(self) -> str:
        """Return the labels' standard deviation in words."""
        return f"numbers with a standard deviation of {self.variance**0.5:.4g}"

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the loss of predicting the mean of ``labels``."""
        return float(np.var(labels) / self.variance)

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the numbers, (N,)."""
        import torch

        return torch.tensor(examples.labels, dtype=torch.float32)

    def losses(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return squared errors in the labels' units, (M,)."""
        from torch.nn.functional import mse_loss

        return mse_loss(logits[:, 0], targets.to(logits.dtype), reduction="none")

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's squared error over the variance, and negative absolute error."""
        predictions = logits[:, 0].cpu().double().numpy()  # (N,)
        error = predictions - np.asarray(examples.labels, dtype=float)  # (N,)
        return {"loss": error**2 / self.variance, "score": -np.abs(error)}


@dataclass(frozen=True)
class CompletionObjective(Objective):
    """Supervised fine-tuning: nats per completion token, and token accuracy.

    The losses of a batch and of an example are means over their completion tokens. The number of
    an example's ``tokens`` is measured too, so that the mean over all tokens can be computed.
    """

    task_type: ClassVar[str] = "CAUSAL_LM"
    unit = "nats per completion token"
    chance = "the base without an adapter"
    score = "token accuracy"
    max_length: ClassVar[int] = 1024

    def describe(self) -> str:
        """Return "completions"."""
        return "completions"

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the supervised tokens of all examples, end to end, (M,)."""
        import torch

        return torch.tensor([token for tokens in examples.labels for token in tokens])

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's nats per token, token accuracy, and number of tokens."""
        return self.by_example(*_log_losses(logits, self.targets(examples)), examples)

    def by_example(
        self, losses: np.ndarray, is_correct: np.ndarray, examples: Encoded
    ) -> dict[str, np.ndarray]:
        """Return each example's nats per token, token accuracy, and number of tokens."""
        counts = np.asarray([len(tokens) for tokens in examples.labels])  # (N,)
        starts = np.concatenate([[0], counts.cumsum()[:-1]])  # (N,)
        return {
            "loss": np.add.reduceat(losses, starts) / counts,
            "score": np.add.reduceat(is_correct.astype(float), starts) / counts,
            "tokens": counts.astype(float),
        }


def _log_losses(logits: "torch.Tensor", targets: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Return each row's log-loss in nats, in float64, and 1.0 where its argmax is right, (M,)."""
    from torch.nn.functional import cross_entropy

    losses, is_correct = [], []
    chunks = zip(logits.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    for chunk, chunk_targets in chunks:
        rows = chunk.cpu().double()  # not every device has float64
        losses.append(cross_entropy(rows, chunk_targets, reduction="none").numpy())
        is_correct.append((rows.argmax(-1) == chunk_targets).double().numpy())
    return np.concatenate(losses), np.concatenate(is_correct)
