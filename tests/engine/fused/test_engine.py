import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.engine.trial import Trial
from rankwise.models.base_model import load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.engine.parity import (
    CONFIG,
    STEPS,
    TRIALS,
    Tiny,
    assert_fused_training_matches_the_reference,
    assert_same_training,
    every_architecture,
)


@every_architecture
def test_training_matches_peft_and_the_trainer(tiny: Tiny) -> None:
    assert_fused_training_matches_the_reference(tiny)


def test_a_diverging_trial_does_not_affect_the_others(tiny: Tiny) -> None:
    base, train, held_out = tiny
    wild = replace(TRIALS[0], learning_rate=1e30)
    packed = list(
        FusedEngine(base, train, held_out, CONFIG, pack_size=3).train([TRIALS[0], wild, TRIALS[1]])
    )
    alone = list(FusedEngine(base, train, held_out, CONFIG).train([TRIALS[0], wild, TRIALS[1]]))
    expected = next(iter(ReferenceEngine(base, train, held_out, CONFIG).train([wild])))
    assert [finished.diverged for finished in packed] == [False, True, False]
    assert len(packed[1].evidence) == 0
    assert len(packed[1].steps) == len(expected.steps) < STEPS
    for one, other in zip(packed[::2], alone[::2], strict=True):
        assert_same_training(one, other)


def test_a_trial_alone_does_not_depend_on_earlier_trials(tiny: Tiny) -> None:
    base, train, held_out = tiny
    first = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    _, again = FusedEngine(base, train, held_out, CONFIG).train([TRIALS[1], TRIALS[0]])
    assert again.steps == first.steps
    assert again.evidence.equals(first.evidence)


def test_the_saved_adapter_gives_the_same_figures_in_peft(tiny: Tiny, tmp_path: Path) -> None:
    base, train, held_out = tiny
    finished = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    save_file(finished.adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(finished.adapter_config))
    scored = score_adapter(base, tmp_path, held_out)
    assert list(scored["loss"]) == pytest.approx(list(finished.evidence["loss"]), abs=1e-6)
    assert list(scored["score"]) == list(finished.evidence["score"])


def test_the_base_is_restored(tiny: Tiny) -> None:
    base, train, held_out = tiny
    before = {
        name: value.clone()
        for name, value in base.model.state_dict().items()
        if "classifier" not in name
    }
    layers = {name: type(module) for name, module in base.model.named_modules()}
    attention = base.model.config._attn_implementation
    list(FusedEngine(base, train, held_out, CONFIG, pack_size=2).train(TRIALS[:2]))
    assert base.model.config._attn_implementation == attention
    assert {name: type(module) for name, module in base.model.named_modules()} == layers
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_checkpointing_changes_memory_and_no_number(tiny: Tiny) -> None:
    base, train, held_out = tiny
    kept, again = (
        next(iter(FusedEngine(base, train, held_out, config).train(TRIALS[:1])))
        for config in (CONFIG, replace(CONFIG, gradient_checkpointing="on"))
    )
    assert again.steps == kept.steps
    assert again.evidence.equals(kept.evidence)
    assert again.peak_memory_bytes < kept.peak_memory_bytes


@pytest.mark.slow
def test_minilm_trains_as_with_peft_and_the_trainer() -> None:
    task = load_task(SweepConfig())
    base = load_base(str(samples.minilm_directory()), task.objective, ["all-linear"], [8])
    train, held_out = (encode(part, base.tokenizer, 128)[0] for part in (task.train, task.held_out))
    train = Encoded(train.ids[:832], train.input_ids[:832], train.labels[:832])
    held_out = Encoded(held_out.ids[:64], held_out.input_ids[:64], held_out.labels[:64])
    recipe = TrainingConfig(epochs=1, batch_size=16)  # 52 steps
    trials = [
        Trial(rank=8, seed=0, learning_rate=1e-3, lora_alpha=8),
        Trial(rank=2, seed=1, learning_rate=5e-4, lora_alpha=4),
    ]
    expected = list(ReferenceEngine(base, train, held_out, recipe).train(trials))
    alone: list[Any] = list(FusedEngine(base, train, held_out, recipe).train(trials))
    packed = list(FusedEngine(base, train, held_out, recipe, pack_size=2).train(trials))
    for one, other, third in zip(alone, expected, packed, strict=True):
        assert_same_training(one, other)
        assert_same_training(third, other)
