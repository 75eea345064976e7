"""Part a: the fused engine has the losses of the reference engine, step by step."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.on_gpu.device import free_memory
from benchmarks.on_gpu.lengths import draw_lengths, make_examples
from benchmarks.on_gpu.models import Scale, random_base
from benchmarks.on_gpu.ways import make_trial, training
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.reference import ReferenceEngine

STEPS = 30


def bound(dtype: torch.dtype) -> float:
    """Return how far two losses may lie apart, as a share of the loss.

    Logits and hidden states are rounded to the compute precision, by half its epsilon each time.
    Both engines round in another order, and a loss is a mean over hundreds of tokens, so that it
    differs by less than one rounding of a logit: epsilon of the loss. In fp32 sums of many terms
    and thirty steps of training let the difference grow, to a few hundred epsilon.
    """
    epsilon = torch.finfo(dtype).eps
    return epsilon if dtype == torch.bfloat16 else 300 * epsilon


def measure(scale: Scale, _left: Callable[[], float]) -> dict[str, Any]:
    """Train one trial with both engines, and a pack of two, and compare the losses."""
    examples = make_examples(draw_lengths(8 * STEPS, min(scale.lengths[-1], 256)))
    few, config = examples.take([0]), training(8, STEPS, scale)
    trials = [make_trial(seed=0), make_trial(rank=8, seed=1)]
    base = random_base(scale.sizes["135M"], scale)
    runs = {
        "reference": ReferenceEngine(base, examples, few, config).train(trials[:1]),
        "fused": FusedEngine(base, examples, few, config).train(trials[:1]),
        "fused, pack of 2": FusedEngine(base, examples, few, config, pack_size=2).train(trials),
    }
    losses = {}
    for name, run in runs.items():
        losses[name] = [row["train_loss"] for row in next(iter(run)).steps]
    expected = losses["reference"]
    differences = {
        name: max(abs(a - b) / abs(b) for a, b in zip(values, expected, strict=True))
        for name, values in losses.items()
        if name != "reference"
    }
    del base
    free_memory(scale.device)
    return {
        "steps": len(expected),
        "losses": losses,
        "largest_difference": differences,
        "bound": bound(scale.dtype),
        "held": all(value <= bound(scale.dtype) for value in differences.values()),
    }
