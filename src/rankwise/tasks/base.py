"""What the main job and the engines know of a task: its parts, tokenised, and how outputs become loss and score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from rankwise.tasks.chat_formats import DataLayout

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label of a token that counts in no loss, transformers' own


@dataclass(frozen=True)
class Examples:
    """One part of the data, before it is tokenised.

    Attributes:
        ids: row of each example in its source, (N,).
        inputs: a text, a pair of texts, or a `rankwise.tasks.chat_formats.Dialogue` each, (N,).
        labels: index of the class, a number, or None where the input itself holds what is to be learnt, (N,).
    """

    ids: tuple[int, ...]
    inputs: tuple[Any, ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Return some of the examples, in the order of ``rows``."""
        return Examples(
            *(tuple(values[row] for row in rows) for values in (self.ids, self.inputs, self.labels))
        )


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        ids: row of each example in its source, (N,).
        input_ids: tokens of each, not padded, N lists.
        labels: what the logits are held against: the index of the class, a number, or the tokens to be told, one for
            each place, (N,).
        token_type_ids: which of two texts a token is of, N lists; None where the tokenizer does not tell.
        positions: of the tokens whose next one is to be told, N lists; None where an example has one row of logits.
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
        """Number of tokens of each example, (N,)."""
        return [len(tokens) for tokens in self.input_ids]

    def take(self, rows: Sequence[int]) -> "Encoded":
        """Return some of the examples, in the order of ``rows``."""
        return Encoded(
            ids=tuple(self.ids[row] for row in rows),
            input_ids=[self.input_ids[row] for row in rows],
            labels=tuple(self.labels[row] for row in rows),
            token_type_ids=None
            if self.token_type_ids is None
            else [self.token_type_ids[row] for row in rows],
            positions=None if self.positions is None else [self.positions[row] for row in rows],
        )

    def inputs(self) -> dict[str, list[list[int]]]:
        """Return what a tokenizer pads for a model."""
        inputs = {"input_ids": self.input_ids}
        return (
            inputs
            if self.token_type_ids is None
            else {**inputs, "token_type_ids": self.token_type_ids}
        )

    def features(self, row: int) -> dict[str, Any]:
        """Return an example as transformers' collators take it; tokens that are not told have the label -100."""
        tokens, labels = self.input_ids[row], self.labels[row]
        if self.positions is not None:
            told = dict(zip(self.positions[row], labels, strict=True))
            labels = [told.get(place, IGNORED) for place in range(-1, len(tokens) - 1)]
        features = {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}
        return (
            features
            if self.token_type_ids is None
            else {**features, "token_type_ids": self.token_type_ids[row]}
        )


class Objective(Protocol):
    """What a model is trained and judged by.

    Attributes:
        task_type: PEFT's: ``SEQ_CLS`` or ``CAUSAL_LM``.
        unit: of the loss, and of what it is a mean.
        chance: what gives `chance_loss`.
        score: what the task score is called; larger is better.
        max_length: tokens kept of an example unless told otherwise.
    """

    task_type: ClassVar[str]
    unit: ClassVar[str]
    chance: ClassVar[str]
    score: ClassVar[str]
    max_length: ClassVar[int]

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the model's config is told: the classes of its head."""
        ...

    def describe(self) -> str:
        """Say in a few words what the examples are, as in "2 classes"."""
        ...

    def chance_loss(self, labels: Sequence[Any]) -> float | None:
        """Return the loss of the best guess that looks at no input, None if there is none to speak of."""
        ...

    def targets(self, examples: Encoded) -> "torch.Tensor":
        """Return what the rows of logits are held against, (M,)."""
        ...

    def loss(self, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return a batch's training loss, as transformers computes it: from (M, outputs) and (M,), a scalar."""
        ...

    def measure(self, logits: "torch.Tensor", examples: Encoded) -> dict[str, np.ndarray]:
        """Return per example, in float64, ``loss``, ``score`` and what else is known, (N,) each, from (M, outputs)."""
        ...


@dataclass(frozen=True)
class Task:
    """A task, its data split once and for all.

    Attributes:
        name: for tables and reports.
        objective: what adapters are trained and judged by.
        encoder: from examples, tokenizer and length to tokenised examples, and how many were cut. Examples of which
            nothing is left to learn are missing from them.
        train: what adapters learn from.
        held_out: what ranks are judged by.
        test: what no decision sees, scored once for the chosen rank; empty where held-out data was given.
        notes: what was settled by itself and should be said aloud.
        layout: how a file holds instruction data; None for another task.
    """

    name: str
    objective: Objective
    encoder: Callable[[Examples, Any, int], tuple[Encoded, int]]
    train: Examples
    held_out: Examples
    test: Examples
    notes: tuple[str, ...] = ()
    layout: DataLayout | None = None

    @property
    def chance_loss(self) -> float | None:
        """Held-out loss of guessing without looking, None if there is no such guess, or it is never wrong.

        It is never wrong where all labels are the same; no adapter could be below it.
        """
        return self.objective.chance_loss(self.held_out.labels) or None


def evidence_frame(ids: Sequence[int], measured: dict[str, np.ndarray]) -> pd.DataFrame:
    """Put per-example results into a table: ``example_id``, and a column for each measure, N rows."""
    return pd.DataFrame({"example_id": np.asarray(ids, dtype=np.int64), **measured})
