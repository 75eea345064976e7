"""Trials, settings and comparisons for tests that compare the engines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model, unsupported_reason
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded
from tests.tiny_models import PACKABLE, cores

STEPS = 20
CONFIG = TrainingConfig(epochs=1, batch_size=8, max_steps=STEPS)
# At these rates training is stable. Elsewhere rounding alone grows to 0.1 % within 50 steps.
TRIALS = [
    Trial(rank=4, seed=3, learning_rate=1e-3, lora_alpha=4),
    Trial(rank=2, seed=1, learning_rate=1e-3, lora_alpha=4, use_rslora=True),
    Trial(rank=3, seed=3, learning_rate=1e-4, lora_alpha=6),
]
Tiny = tuple[BaseModel, Encoded, Encoded]
# Other architectures resemble one of these, and run with the slow tests.
EVERYDAY = ("bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "gemma2")
every_architecture = pytest.mark.parametrize(
    "tiny",
    [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in PACKABLE],
    indirect=True,
)


def adapter_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the gradients of an adapter under the names of its parameters, and detach it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.grad
    gradients: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
    model.unload()
    return gradients


class Recorded:
    """Progress that keeps what it receives."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shares: list[float] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def work(self, share: float) -> None:
        self.shares.append(share)


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


def assert_fused_training_matches_the_reference(tiny: Tiny) -> FinishedTrial:
    """Train alone, packed and by the reference engine; return the trial trained alone."""
    base, train, held_out = tiny
    assert unsupported_reason(base, train) is None
    expected = list(ReferenceEngine(base, train, held_out, CONFIG).train(TRIALS[:1]))
    alone = list(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:2]))
    with cores(1):  # so that both are in one pass
        packed = list(FusedEngine(base, train, held_out, CONFIG, pack_size=2).train(TRIALS[:2]))
    assert len(alone[0].steps) == STEPS
    assert_same_training(alone[0], expected[0])
    for one, other in zip(packed, alone, strict=True):
        assert_same_training(one, other)
    return alone[0]


def assert_logits_in_fp32(base: BaseModel, held_out: Encoded, head: torch.nn.Linear) -> None:
    """Compare logits of a base in bf16 with the product of its head in float64."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode(), packed_model(base) as model:
            bare: Any = SimpleNamespace(factors={}, head={})
            (logits,) = model.logits([bare], [held_out])
    finally:
        hook.remove()
    bias = None if head.bias is None else head.bias.double()
    expected = torch.nn.functional.linear(seen[0].double(), head.weight.double(), bias)
    torch.testing.assert_close(logits.double(), expected.view(logits.shape), rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits, logits.bfloat16().float())
