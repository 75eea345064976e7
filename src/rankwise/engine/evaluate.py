"""Loss and score of a model on each example."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rankwise.tasks.base import Encoded, Objective, evidence_frame

CPU_BATCH_TOKENS = 2048  # tokens of a scoring batch, with padding, that stay in a CPU's cache
BATCH_TOKENS = 16384


def evaluate(
    model: nn.Module, tokenizer: Any, examples: Encoded, objective: Objective
) -> pd.DataFrame:
    """Score N examples in eval mode, with a model that has the objective's head.

    Returns:
        A table of ``example_id``, ``loss``, ``score`` and the objective's other measures, N rows.
    """
    device = next(model.parameters()).device
    results = Results(examples)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        # Logits of all tokens over a vocabulary would fill the memory of any device.
        most = CPU_BATCH_TOKENS if examples.positions is not None else None
        for rows in length_batches(examples, device, most=most):
            part = examples.take(rows)
            results.put(rows, objective.measure(padded_logits(model, tokenizer, part), part))
    model.train(was_training)
    return results.frame()


class Results:
    """Measures of N examples, collected batch by batch."""

    def __init__(self, examples: Encoded) -> None:
        self.ids = examples.ids
        self._measures: dict[str, np.ndarray] = {}

    def put(self, rows: Sequence[int], measures: Mapping[str, np.ndarray]) -> None:
        """Store the measures of some rows."""
        for name, values in measures.items():
            self._measures.setdefault(name, np.empty(len(self.ids)))[rows] = values

    def frame(self) -> pd.DataFrame:
        """Return all measures as a table of evidence."""
        return evidence_frame(self.ids, self._measures)


def padded_logits(model: nn.Module, tokenizer: Any, examples: Encoded) -> torch.Tensor:
    """Return logits of N examples, (N, outputs), or (M, vocabulary) of M supervised tokens."""
    batch = tokenizer.pad(examples.inputs(), padding_side="right", return_tensors="pt")
    logits = model(**batch.to(next(model.parameters()).device)).logits
    if examples.positions is None:
        return logits
    pairs = zip(logits, examples.positions, strict=True)
    return torch.cat([row[positions] for row, positions in pairs])


def length_batches(
    examples: Encoded, device: torch.device, copies: int = 1, most: int | None = None
) -> list[list[int]]:
    """Group all rows by similar length, with as many tokens in a group as a device scores fast.

    Each row goes through the model ``copies`` times in its batch. A batch has at most ``most``
    tokens, unless it is a single row.
    """
    budget = CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS
    budget = min(budget, most or budget) // copies
    lengths = examples.lengths
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Lengths ascend, so the batch will be padded to the newest row.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
