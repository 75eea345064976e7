"""Padded batches split into micro-batches whose gradients add up to the batch's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers

from rankwise.tasks.base import IGNORED

Batch = Mapping[str, torch.Tensor]


def split_batch(batch: Batch, tokens: int | None) -> Iterator[tuple[Batch, float]]:
    """Split a padded batch into parts of at most so many tokens, with padding.

    A part holds one example at least. It is cut at its longest example, so the batch must be padded
    on the right.

    Args:
        batch: inputs and ``labels`` of N examples.
        tokens: None for the whole batch.

    Yields:
        Each part, and its share of what the batch's loss is a mean over: examples, or supervised
        tokens.
    """
    if tokens is None:
        yield batch, 1.0
        return
    lengths = batch["attention_mask"].sum(dim=1).tolist()  # (N,)
    items = _items(batch["labels"]).tolist()  # (N,)
    start = 0
    while start < len(lengths):
        stop, longest = start + 1, lengths[start]
        while stop < len(lengths):
            longer = max(longest, lengths[stop])
            if longer * (stop + 1 - start) > tokens:
                break
            stop, longest = stop + 1, longer
        share = sum(items[start:stop]) / sum(items)
        yield {key: _cut(value[start:stop], longest) for key, value in batch.items()}, share
        start = stop


def _items(labels: torch.Tensor) -> torch.Tensor:
    """Return how many items of the loss each of N examples has, (N,)."""
    if labels.ndim == 1:
        return torch.ones_like(labels, dtype=torch.long)
    return (labels[:, 1:] != IGNORED).sum(dim=1)  # a token's label counts at the token before it


def _cut(values: torch.Tensor, length: int) -> torch.Tensor:
    return values if values.ndim == 1 else values[:, :length]


class MicroBatchTrainer(transformers.Trainer):
    """A Trainer that passes a batch in parts, so that a batch which does not fit can be trained.

    The Trainer's own accumulation takes equally many examples for each part, and weighs the parts
    of a classifier equally, however few the last one has.

    Args:
        micro_batch_tokens: see `split_batch`.
        **arguments: those of the Trainer.
    """

    def __init__(self, micro_batch_tokens: int | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._tokens = micro_batch_tokens
        self._share = 1.0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Return the batch's mean loss; gradients are added to those that are there."""
        if self._tokens is None:
            return super().training_step(model, inputs, num_items_in_batch)
        losses = []
        for part, share in split_batch(inputs, self._tokens):
            self._share = share
            losses.append(super().training_step(model, dict(part)))
        return torch.stack(losses).sum()

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Return the mean loss of the inputs, times their share of the batch."""
        loss: Any = super().compute_loss(model, inputs, *arguments, **options)
        return loss if self._tokens is None else loss * self._share
