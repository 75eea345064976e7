import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.engine.trial import Trial
from rankwise.models.base_model import BaseModel, load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.engine.parity import (
    CONFIG,
    TRIALS,
    Tiny,
    assert_fused_training_matches_the_reference,
    assert_same_training,
    figures,
)
from tests.tiny_models import PACKABLE, load_tiny


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = getattr(request, "param", "bert")
    return load_tiny(name, tmp_path_factory.mktemp(name))


# Other architectures resemble one of these, and run with the slow tests.
EVERYDAY = ("bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "qwen2", "gemma2")
every_architecture = pytest.mark.parametrize(
    "tiny",
    [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in PACKABLE],
    indirect=True,
)


@every_architecture
def test_training_matches_peft_and_the_trainer(tiny: Tiny) -> None:
    assert_fused_training_matches_the_reference(tiny)


@every_architecture
def test_gradients_match_peft(tiny: Tiny) -> None:
    assert_gradients_match_peft(*tiny)


def test_gradients_match_peft_without_an_adapter_on_keys(tmp_path: Path) -> None:
    assert_gradients_match_peft(*load_tiny("bert", tmp_path, targets=["query", "value"]))


def assert_gradients_match_peft(base: BaseModel, train: Encoded, held_out: Encoded) -> None:
    """In float64, on a batch of very different lengths."""
    by_length = sorted(range(len(train)), key=train.lengths.__getitem__)
    batch = [
        by_length[0],
        by_length[-1],
        by_length[5],
        by_length[len(by_length) // 2],
        by_length[-2],
    ]
    base.model.double()
    try:
        saved = saved_modules(base)
        engine = FusedEngine(base, train, held_out, CONFIG)
        state = TrainingState(TRIALS[1], base, saved, CONFIG, train)
        state.flat.copy_(
            torch.randn(state.flat.shape, dtype=torch.float64) * 0.1
        )  # B is 0 in an untrained adapter
        parameters = state.adapter()
        with packed_model(base) as model:
            (loss,) = engine.forward_backward(model, [state], [batch])
        state.flat.copy_(state.flat.grad)  # so that the names are those of the adapter
        ours = state.adapter()

        model = attach_adapter(base, TRIALS[1], saved)
        set_peft_model_state_dict(model, parameters)
        expected = 0.0
        for row in batch:  # one at a time: Gemma 2 gives NaN for a padded batch in float64
            output = model(
                input_ids=torch.tensor([train.input_ids[row]]),
                labels=torch.tensor([train.labels[row]]),
            )
            (output.loss / len(batch)).backward()
            expected += output.loss.item() / len(batch)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        theirs = get_peft_model_state_dict(model)
        model.unload()
    finally:
        base.model.float()
    # transformers computes Gemma 2's softmax in float32; test_attention.py checks ours in float64.
    tolerance = 1e-5 if base.model.config.model_type == "gemma2" else 1e-10
    assert loss == pytest.approx(expected, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert float(theirs[key].abs().max()) > 1e-8, key  # a zero gradient would prove nothing
        torch.testing.assert_close(value, theirs[key], rtol=0.0, atol=tolerance)


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
    assert len(packed[1].steps) == len(expected.steps) < 50
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


def test_time_and_memory_are_those_of_a_trial_alone(tiny: Tiny) -> None:
    base, train, held_out = tiny
    shares: list[float] = []
    engine = FusedEngine(base, train, held_out, CONFIG, on_work=shares.append, pack_size=3)
    packed = list(engine.train(TRIALS))
    assert sum(shares) == pytest.approx(3.0)
    assert {finished.pack_size for finished in packed} == {3}
    assert len({finished.pack_seconds for finished in packed}) == 1
    assert all(0 < finished.train_seconds < 3 * packed[0].pack_seconds for finished in packed)
    alone = list(FusedEngine(base, train, held_out, CONFIG).train(TRIALS))
    for one, other in zip(packed, alone, strict=True):
        assert one.peak_memory_bytes == other.peak_memory_bytes  # what a trial needs by itself
        assert other.pack_seconds == other.train_seconds
    # Rank 4 has one row of A and of B more than rank 3: 4 bytes each for parameter, gradient and
    # two optimizer states; and one more column of x A^T in the layers passed so far.
    extra = sum(d_in + d_out for d_in, d_out in base.targets.values())
    tokens = sum(sorted(train.lengths)[-CONFIG.batch_size :])
    grown = alone[0].peak_memory_bytes - alone[2].peak_memory_bytes
    assert 16 * extra <= grown <= 16 * extra + 4 * tokens * len(base.targets)


def test_bf16_products_give_similar_losses(tiny: Tiny) -> None:
    base, train, held_out = tiny
    exact = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    rough = next(
        iter(FusedEngine(base, train, held_out, CONFIG, autocast=torch.bfloat16).train(TRIALS[:1]))
    )
    assert figures(rough, "train_loss") != figures(exact, "train_loss")
    assert figures(rough, "train_loss") == pytest.approx(figures(exact, "train_loss"), rel=0.05)
    assert all(value.dtype == torch.float32 for value in rough.adapter.values())


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
