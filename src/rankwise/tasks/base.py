"""A task as engines see it: training, held-out and test examples, and the objective they share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from rankwise.tasks.chat_formats import DataLayout

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a token that no loss counts, as in transformers


@dataclass(frozen=True)
class Examples:
    """Examples of one split, before they are tokenised.

    Attributes:
        ids: row of each example in its source, (N,).
        inputs: a text, a pair of texts, or a `rankwise.tasks.dialogues.Dialogue` each, (N,).
        labels: class index or number of each; None where the dialogue holds the target, (N,).
    """

    ids: tuple[int, ...]
    inputs: tuple[Any, ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Return the examples at ``rows``, in that order."""
        fields = (self.ids, self.inputs, self.labels)
        return Examples(*(tuple(field[row] for row in rows) for field in fields))


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        ids: row of each example in its source, (N,).
        input_ids: token ids of each example, unpadded, N lists.
        labels: targets: class index, number, or the supervised token ids, (N,).
        token_type_ids: which text of a pair each token belongs to, N lists; None for single texts
            and for tokenizers without them.
        positions: positions whose next token is supervised, N lists; None for sequence
            classification, where each example has one row of logits.
    """

    ids: tuple[int, ...]
    input_ids: list[list[int]]
    labels: tuple[Any, ...]
    token_type_ids: list[list[int]] | None = None
    positions: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens in each example, (N,)."""
        return [len(tokens) for tokens in self.input_ids]

    @property
    def loss_count(self) -> int:
        """Number of losses that the training loss is the mean of: examples or supervised tokens."""
        return len(self) if self.positions is None else sum(map(len, self.positions))

    def take(self, rows: Sequence[int]) -> "Encoded":
        """Return the examples at ``rows``, in that order."""

        def pick(values: list[list[int]] | None) -> list[list[int]] | None:
            return None if values is None else [values[row] for row in rows]

        return Encoded(
            ids=tuple(self.ids[row] for row in rows),
            input_ids=[self.input_ids[row] for row in rows],
            labels=tuple(self.labels[row] for row in rows),
            token_type_ids=pick(self.token_type_ids),
            positions=pick(self.positions),
        )

    def digest(self) -> str:
        """Return a digest of all that training and scoring see: ids, tokens, labels, positions."""
        digest = hashlib.sha256()
        for field in fields(self):
            values = getattr(self, field.name)
            digest.update(f"{field.name} {None if values is None else len(values)}\n".encode())
            if values is not None:
                rows = [value if isinstance(value, list | tuple) else (value,) for value in values]
                lengths = np.fromiter(map(len, rows), np.int64, len(rows))
                numbers = np.fromiter(chain.from_iterable(rows), np.float64, lengths.sum())
                digest.update(lengths.tobytes() + numbers.tobytes())
        return digest.hexdigest()

    def inputs(self) -> dict[str, list[list[int]]]:
        """Return the model inputs that a tokenizer pads."""
        if self.token_type_ids is None:
            return {"input_ids": self.input_ids}
        return {"input_ids": self.input_ids, "token_type_ids": self.token_type_ids}

    def features(self, row: int) -> dict[str, Any]:
        """Return one example for a collator of transformers; label -100 is not supervised."""
        tokens, labels = self.input_ids[row], self.labels[row]
        if self.positions is not None:
            targets = dict(zip(self.positions[row], labels, strict=True))
            labels = [targets.get(position, IGNORED) for position in range(-1, len(tokens) - 1)]
        features = {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}
        if self.token_type_ids is not None:
            features["token_type_ids"] = self.token_type_ids[row]
        return features


class Objective(ABC):
    """Training loss, per-example loss and task score of a task; the log-loss by default.

    Attributes:
        task_type: PEFT's task type, ``SEQ_CLS`` or ``CAUSAL_LM``.
        unit: unit of the loss, such as "nats per example".
        chance: name of the baseline that `chance_loss` computes.
        score: name of the task score; larger is better.
        max_length: default number of tokens kept of an example.
    """

    task_type: ClassVar[str] = "SEQ_CLS"
    unit: str
    chance: str
    score: str
    max_length: ClassVar[int] = 256

    @property
    def settings(self) -> dict[str, Any]:
        """Return the model config's settings for the classification head."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """Describe the examples in a few words, as in "2 classes"."""

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the loss of the best guess that ignores the input, None if there is none."""
        return None

    @abstractmethod
    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return the target of each row of logits, (M,)."""

    def losses(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return training losses, (M,), whose mean is the loss that transformers computes.

        Args:
            logits: shape (M, outputs).
            targets: shape (M,).
        """
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, reduction="none")

    @abstractmethod
    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return a column in float64, (N,), for each measure: ``loss``, ``score`` and any others.

        Args:
            logits: shape (M, outputs).
            examples: N examples.
        """

    def by_example(
        self, losses: np.ndarray, is_correct: np.ndarray, examples: Encoded
    ) -> dict[str, np.ndarray]:
        """Return the measures of N examples, (N,) each, from log-losses of M rows of logits.

        Args:
            losses: log-losses in nats, (M,).
            is_correct: where the likeliest output is right, (M,).
            examples: N examples.
        """
        return {"loss": losses, "score": is_correct}


Encoder = Callable[[Examples, Any, int], tuple[Encoded, int]]
"""Turns examples, a tokenizer and a maximal length into tokenised examples; counts truncated ones.

Examples with nothing left to learn are left out.
"""


@dataclass(frozen=True)
class Task:
    """A fine-tuning task, with its data split for the whole sweep.

    Attributes:
        name: name in tables and reports.
        train: examples that adapters are trained on.
        held_out: examples that ranks are compared on.
        test: examples for the chosen rank's final score only; empty if held-out data was given.
        notes: choices made for the user, to be printed.
        layout: columns and messages of the instruction data; None for other tasks.
        checker: finds what of the training data a tokenizer's chat template leaves out; None for
            tasks without chats.
    """

    name: str
    objective: Objective
    encoder: Encoder
    train: Examples
    held_out: Examples
    test: Examples
    notes: tuple[str, ...] = ()
    layout: DataLayout | None = None
    checker: Callable[[Examples, Any], list[str]] | None = None

    def notes_on(self, tokenizer: Any) -> list[str]:
        """Return notes on what the tokenizer's chat template leaves out of the training data."""
        return [] if self.checker is None else self.checker(self.train, tokenizer)

    @property
    def chance_loss(self) -> float | None:
        """Chance-level held-out loss; None if there is none, or if it is 0 (equal labels)."""
        return self.objective.chance_loss(self.held_out.labels) or None


def evidence_frame(ids: Sequence[int], measured: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return per-example results as a table: ``example_id``, and a column for each measure."""
    return pd.DataFrame({"example_id": np.asarray(ids, dtype=np.int64), **measured})
