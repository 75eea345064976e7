"""Trials, settings and comparisons for tests that compare the engines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.model import packed_model
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded

CONFIG = TrainingConfig(epochs=1, batch_size=8)  # 50 steps
# At these rates training is stable. Elsewhere rounding alone grows to 0.1 % within 50 steps.
TRIALS = [
    Trial(rank=4, seed=3, learning_rate=1e-3, lora_alpha=4),
    Trial(rank=2, seed=1, learning_rate=1e-3, lora_alpha=4, use_rslora=True),
    Trial(rank=3, seed=3, learning_rate=1e-4, lora_alpha=6),
]
Tiny = tuple[BaseModel, Encoded, Encoded]


def figures(finished: FinishedTrial, what: str) -> list[float]:
    return [row[what] for row in finished.steps]


def assert_same_training(one: FinishedTrial, other: FinishedTrial) -> None:
    for what in ("step", "epoch", "learning_rate"):
        assert figures(one, what) == figures(other, what)
    assert figures(one, "train_loss") == pytest.approx(figures(other, "train_loss"), rel=1e-5)
    assert figures(one, "grad_norm") == pytest.approx(figures(other, "grad_norm"), rel=1e-4)
    assert list(one.evidence["example_id"]) == list(other.evidence["example_id"])
    assert list(one.evidence["loss"]) == pytest.approx(
        list(other.evidence["loss"]), rel=1e-5, abs=1e-6
    )
    assert one.adapter.keys() == other.adapter.keys()
    for key, value in one.adapter.items():
        assert value.shape == other.adapter[key].shape
    assert one.adapter_config == other.adapter_config
    assert one.trainable_params == other.trainable_params
    assert one.diverged == other.diverged


def assert_logits_in_fp32(base: BaseModel, held_out: Encoded, head: torch.nn.Linear) -> None:
    """Compare logits with the head's product in float64, from its inputs under autocast."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode(), packed_model(base, torch.bfloat16) as model:
            bare: Any = SimpleNamespace(factors={}, head={})
            (logits,) = model.logits([bare], [held_out])
    finally:
        hook.remove()
    bias = None if head.bias is None else head.bias.double()
    expected = torch.nn.functional.linear(seen[0].double(), head.weight.double(), bias)
    torch.testing.assert_close(logits.double(), expected.view(logits.shape), rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits, logits.bfloat16().float())
