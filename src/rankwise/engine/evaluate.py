"""Per-example loss and score of a model on a part of the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rankwise.tasks.base import Encoded, Objective, evidence_frame

BATCH_TOKENS = {"cpu": 2048}  # of a scoring batch, padding counted: what stays in a CPU's cache
BATCH_TOKENS_ELSEWHERE = 16384


def evaluate(
    model: nn.Module, tokenizer: Any, examples: Encoded, objective: Objective
) -> pd.DataFrame:
    """Score every example, in eval mode.

    Args:
        model: of the objective's type, with or without an adapter.
        tokenizer: pads a batch.
        examples: N of them.
        objective: tells loss and score from logits.

    Returns:
        ``example_id``, ``loss``, ``score`` and what else the objective measures, N rows, in the order of the examples.
    """
    device = next(model.parameters()).device
    results = Results(examples)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in length_batches(examples, device):
            part = examples.take(rows)
            results.put(rows, objective.measure(padded_logits(model, tokenizer, part), part))
    model.train(was_training)
    return results.frame()


class Results:
    """Measures of N examples, gathered batch by batch."""

    def __init__(self, examples: Encoded) -> None:
        self.ids = examples.ids
        self._measured: dict[str, np.ndarray] = {}

    def put(self, rows: Sequence[int], measured: Mapping[str, np.ndarray]) -> None:
        """Take the measures of some rows."""
        for name, values in measured.items():
            self._measured.setdefault(name, np.empty(len(self.ids)))[rows] = values

    def frame(self) -> pd.DataFrame:
        """Return them as evidence."""
        return evidence_frame(self.ids, self._measured)


def padded_logits(model: nn.Module, tokenizer: Any, examples: Encoded) -> torch.Tensor:
    """Run a padded batch of N examples; return (N, outputs), or (M, vocabulary) for the M places to be told."""
    batch = tokenizer.pad(examples.inputs(), padding_side="right", return_tensors="pt")
    logits = model(**batch.to(next(model.parameters()).device)).logits
    if examples.positions is None:
        return logits
    return torch.cat([own[places] for own, places in zip(logits, examples.positions, strict=True)])


def length_batches(examples: Encoded, device: torch.device, copies: int = 1) -> list[list[int]]:
    """Group rows of like length, each group as many tokens as the device scores well at a time.

    Args:
        examples: N of them.
        device: that scores them.
        copies: how often each row is in a batch.

    Returns:
        Lists of rows, together all N.
    """
    # Logits over a vocabulary are what fills a memory, on any device.
    most = BATCH_TOKENS["cpu"] if examples.positions is not None else BATCH_TOKENS_ELSEWHERE
    budget = BATCH_TOKENS.get(device.type, most) // copies
    lengths = examples.lengths
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Lengths ascend, so the newest row is as long as the batch will be padded to.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
