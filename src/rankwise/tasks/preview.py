"""Examples as the model will see them: their text after tokenising, with what is learnt marked."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rankwise.tasks.base import Encoded, Task

OPEN, CLOSE = "«", "»"


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of an example, all learnt or all not.

    Attributes:
        text: the tokens as text, special tokens included.
        learnt: whether the loss covers them.
    """

    text: str
    learnt: bool


@dataclass(frozen=True)
class ShownExample:
    """One training example as the model will see it; ``str`` of it marks «what is learnt».

    Attributes:
        row: row in the training data, counted from 1.
        tokens: number of tokens.
        learnt_tokens: number of tokens that are learnt; 0 for classification and regression.
        pieces: the example's text, from start to end.
        label: class or number to predict; None where tokens are learnt.
    """

    row: int
    tokens: int
    learnt_tokens: int
    pieces: tuple[Piece, ...]
    label: str | None = None

    @property
    def heading(self) -> str:
        """One line on the row, its size and what is learnt of it."""
        target = f"{self.learnt_tokens} learnt" if self.label is None else f"label {self.label}"
        return f"row {self.row}: {self.tokens} tokens, {target}"

    def __str__(self) -> str:
        texts = [f"{OPEN}{p.text}{CLOSE}" if p.learnt else p.text for p in self.pieces]
        return f"{self.heading}\n{''.join(texts)}"


def show_examples(
    task: Task, tokenizer: Any, max_length: int, count: int
) -> tuple[ShownExample, ...]:
    """Return the first training examples of a task; those with nothing to learn are left out.

    Raises:
        RequestError: the tokenizer's chat template refuses an example.
    """
    shown: list[ShownExample] = []
    for row in range(len(task.train)):
        if len(shown) == count:
            break
        encoded, _ = task.encoder(task.train.take([row]), tokenizer, max_length)
        if len(encoded):
            shown.append(_show(encoded, task, tokenizer))
    return tuple(shown)


def _show(encoded: Encoded, task: Task, tokenizer: Any) -> ShownExample:
    tokens, row = encoded.input_ids[0], encoded.ids[0] + 1
    if encoded.positions is None:
        names = task.objective.settings.get("id2label", {})
        label = str(names.get(encoded.labels[0], encoded.labels[0]))
        pieces = tuple(_pieces(tokens, [False] * len(tokens), tokenizer))
        return ShownExample(row, len(tokens), 0, pieces, label)
    before = set(encoded.positions[0])
    learnt = [place - 1 in before for place in range(len(tokens))]
    return ShownExample(row, len(tokens), sum(learnt), tuple(_pieces(tokens, learnt, tokenizer)))


def _pieces(tokens: list[int], learnt: list[bool], tokenizer: Any) -> Iterator[Piece]:
    """Split the text where learnt and other tokens meet.

    Texts are differences of decoded beginnings, because some tokenizers drop a first blank.
    """
    end, text = 0, ""
    for is_learnt, group in groupby(learnt):
        end += len(list(group))
        longer = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        yield Piece(longer[len(text) :], is_learnt)
        text = longer
