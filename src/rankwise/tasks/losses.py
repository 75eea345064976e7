"""From logits to losses and scores: classes, numbers, and the tokens of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rankwise.tasks.base import Encoded

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 256  # of logits over a vocabulary that are copied to float64


@dataclass(frozen=True)
class ClassificationObjective:
    """Classification: log-loss in nats, and whether the best class is the right one.

    Attributes:
        label_names: the classes; a label is an index into them.
    """

    label_names: tuple[str, ...]

    task_type: ClassVar[str] = "SEQ_CLS"
    unit: ClassVar[str] = "nats per example"
    chance: ClassVar[str] = "guessing by the classes' shares"
    score: ClassVar[str] = "accuracy"
    max_length: ClassVar[int] = 256

    @property
    def settings(self) -> dict[str, Any]:
        """Return the config's number and names of classes."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {label: index for index, label in enumerate(self.label_names)},
        }

    def describe(self) -> str:
        """Say how many classes there are."""
        return f"{len(self.label_names)} classes"

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the loss of guessing by the classes' shares, nats per example: their entropy."""
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the indices of the classes, (N,)."""
        import torch

        return torch.tensor(examples.labels)

    def loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the batch's mean log-loss."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets)

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's log-loss in nats, and 1.0 where its best class is the right one."""
        loss, right = _log_losses(logits, self.targets(examples))
        return {"loss": loss, "score": right}


@dataclass(frozen=True)
class RegressionObjective:
    """Regression: squared error as a share of the training labels' variance, and the negative absolute error.

    Models train on the labels as they are, by the mean squared error, so that a saved adapter gives numbers in the
    labels' own units. As a share of the variance the loss has no units: 1 is what guessing the mean gives, and 1 minus
    its mean is R².

    Attributes:
        variance: of the training labels.
    """

    variance: float

    task_type: ClassVar[str] = "SEQ_CLS"  # PEFT has no type of its own for it
    unit: ClassVar[str] = "of the labels' variance"
    chance: ClassVar[str] = "guessing the labels' mean"
    score: ClassVar[str] = "negative absolute error"
    max_length: ClassVar[int] = 256

    @property
    def settings(self) -> dict[str, Any]:
        """Return the config's single output, with which transformers takes the squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def describe(self) -> str:
        """Say how far the numbers spread."""
        return f"numbers with a standard deviation of {self.variance**0.5:.4g}"

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the loss of guessing the labels' own mean."""
        return float(np.var(labels) / self.variance)

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the numbers, (N,)."""
        import torch

        return torch.tensor(examples.labels, dtype=torch.float32)

    def loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the batch's mean squared error, in the labels' units."""
        from torch.nn.functional import mse_loss

        return mse_loss(logits[:, 0], targets.to(logits.dtype))

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's squared error over the variance, and its absolute error, negative."""
        error = logits[:, 0].cpu().double().numpy() - np.asarray(
            examples.labels, dtype=float
        )  # (N,)
        return {"loss": error**2 / self.variance, "score": -np.abs(error)}


@dataclass(frozen=True)
class CompletionObjective:
    """Supervised fine-tuning: nats per completion token, and the share of those tokens that the model puts first.

    A batch's training loss is the mean over its completion tokens. A held-out example's loss is the mean over its own
    tokens, whose number is kept beside it (``tokens``), so that the mean over all tokens can be had.
    """

    task_type: ClassVar[str] = "CAUSAL_LM"
    unit: ClassVar[str] = "nats per completion token"
    chance: ClassVar[str] = "the base without an adapter"
    score: ClassVar[str] = "token accuracy"
    max_length: ClassVar[int] = 1024

    @property
    def settings(self) -> dict[str, Any]:
        """Return nothing: the model's config stays as it is."""
        return {}

    def describe(self) -> str:
        """Say what is learnt."""
        return "completions"

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return None: no guess at a text is worth naming."""
        return None

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the tokens to be told, end to end, (M,)."""
        import torch

        return torch.tensor([token for tokens in examples.labels for token in tokens])

    def loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return the mean log-loss over the batch's tokens."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets)

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return each example's nats per token, the share of its tokens that come first, and how many there are."""
        counts = np.asarray([len(tokens) for tokens in examples.labels])  # (N,)
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        loss, right = _log_losses(logits, self.targets(examples))  # (M,) each
        return {
            "loss": np.add.reduceat(loss, starts) / counts,
            "score": np.add.reduceat(right, starts) / counts,
            "tokens": counts.astype(float),
        }


def _log_losses(logits: "torch.Tensor", targets: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Return each row's log-loss in nats, computed in float64, and 1.0 where its best output is the target, (M,)."""
    from torch.nn.functional import cross_entropy

    losses, right = [], []
    for rows, own in zip(logits.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True):
        rows = rows.cpu().double()  # not every device has float64
        losses.append(cross_entropy(rows, own, reduction="none").numpy())
        right.append((rows.argmax(-1) == own).double().numpy())
    return np.concatenate(losses), np.concatenate(right)
