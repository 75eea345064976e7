"""Per-example loss and score of a model on a part of the data."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rankwise.tasks.classification import Encoded, evidence_frame, losses_and_scores

BATCH_TOKENS = {"cpu": 2048}  # of a scoring batch, padding counted: what stays in a CPU's cache
BATCH_TOKENS_ELSEWHERE = 16384


def evaluate(model: nn.Module, tokenizer: Any, examples: Encoded) -> pd.DataFrame:
    """Score every example, in eval mode.

    Args:
        model: a sequence classifier, with or without an adapter.
        tokenizer: pads a batch.
        examples: N of them.

    Returns:
        ``example_id``, ``loss`` (nats), ``score`` (1.0 where right), (N, 3), in the order of the examples.
    """
    device = next(model.parameters()).device
    loss, score = np.empty(len(examples)), np.empty(len(examples))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in length_batches(examples.lengths, device):
            batch = tokenizer.pad({"input_ids": [examples.input_ids[row] for row in rows]}, return_tensors="pt")
            logits = model(**batch.to(device)).logits  # (B, classes)
            labels = torch.tensor([examples.labels[row] for row in rows])  # (B,)
            loss[rows], score[rows] = losses_and_scores(logits, labels)
    model.train(was_training)
    return evidence_frame(examples.ids, loss, score)


def length_batches(lengths: list[int], device: torch.device, copies: int = 1) -> list[list[int]]:
    """Group rows of like length, each group as many tokens as the device scores well at a time.

    Args:
        lengths: tokens of each row, (N,).
        device: that scores them.
        copies: how often each row is in a batch.

    Returns:
        Lists of rows, together all N.
    """
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS_ELSEWHERE) // copies
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Lengths ascend, so the newest row is as long as the batch will be padded to.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
