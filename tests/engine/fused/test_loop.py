"""The training loop: gradients against PEFT's, and micro-batches against whole batches."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.model import PackedBatches, PackedModel, packed_model
from rankwise.engine.fused.optimizer import STEPS_BETWEEN_READINGS
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded
from tests.engine.parity import (
    CONFIG,
    STEPS,
    TRIALS,
    Tiny,
    adapter_gradients,
    assert_same_training,
    every_architecture,
)
from tests.tiny_models import cores, load_tiny, load_tiny_lm


@every_architecture
def test_gradients_match_peft(tiny: Tiny) -> None:
    assert_gradients_match_peft(*tiny)


def test_gradients_match_peft_without_an_adapter_on_keys(tmp_path: Path) -> None:
    assert_gradients_match_peft(*load_tiny("bert", tmp_path, targets=["query", "value"]))


def assert_gradients_match_peft(base: BaseModel, train: Encoded, _: Encoded) -> None:
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
    base.model.set_experts_implementation("eager")  # PyTorch's grouped products lack float64
    try:
        saved = saved_modules(base)
        loop = TrainingLoop(base, train, Limits(1, None))
        state = TrainingState(TRIALS[1], base, saved, CONFIG, train)
        state.flat.copy_(
            torch.randn(state.flat.shape, dtype=torch.float64) * 0.1
        )  # B is 0 in an untrained adapter
        parameters = state.adapter()
        with packed_model(base) as model:
            (loss,) = loop.forward_backward(model, [state], [batch])
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
        theirs = adapter_gradients(model)
    finally:
        base.model.float()
    # transformers computes Gemma 2's softmax in float32; test_attention.py checks ours in float64.
    tolerance = 1e-5 if base.model.config.model_type == "gemma2" else 1e-10
    assert float(loss) == pytest.approx(expected, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert float(theirs[key].abs().max()) > 1e-8, key  # a zero gradient would prove nothing
        torch.testing.assert_close(value, theirs[key], rtol=0.0, atol=tolerance)


MICRO_BATCHES = [1, 40, 100]  # tokens: an example each, or some; a batch has about 150


@pytest.mark.parametrize("tokens", MICRO_BATCHES)
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_micro_batches_add_up_to_the_whole_batch(kind: str, tokens: int, tmp_path: Path) -> None:
    """In float64; the examples of a batch have very different numbers of tokens and of losses."""
    load, name = (load_tiny, "bert") if kind == "classifier" else (load_tiny_lm, "llama")
    base, train, _ = load(name, tmp_path)
    base.model.double()
    saved = saved_modules(base)
    states = [TrainingState(trial, base, saved, CONFIG, train) for trial in TRIALS[:2]]
    for state in states:
        state.flat.copy_(torch.randn(state.flat.shape, dtype=torch.float64) * 0.1)
    batches = [list(range(8)), list(range(8, 13))]
    results = []
    for micro_batch_tokens in (None, tokens):
        loop = TrainingLoop(base, train, Limits(2, micro_batch_tokens))
        with packed_model(base) as model:
            losses = loop.forward_backward(model, states, batches)
        results.append((losses, [state.gradient.clone() for state in states]))
        for state in states:
            state.gradient.zero_()
    (whole, whole_gradients), (parts, part_gradients) = results
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0.0)
    for part, gradient in zip(part_gradients, whole_gradients, strict=True):
        assert float(gradient.abs().max()) > 1e-4
        torch.testing.assert_close(part, gradient, rtol=0.0, atol=1e-13)


def test_micro_batches_train_as_the_reference_does(tiny: Tiny) -> None:
    base, train, held_out = tiny
    (expected,) = ReferenceEngine(base, train, held_out, CONFIG).train(TRIALS[:1])
    config = replace(CONFIG, micro_batch_tokens=60)
    with cores(1):
        finished, _ = FusedEngine(base, train, held_out, config, pack_size=2).train(TRIALS[:2])
    assert_same_training(finished, expected)


def test_no_pass_has_more_tokens_than_a_micro_batch(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, train, held_out = tiny
    sizes: list[tuple[int, int]] = []
    plain = PackedModel.loss_sums

    def loss_sums(self: PackedModel, states: Sequence[Any], batches: PackedBatches) -> Any:
        sizes.append((batches.packing.tokens, len(batches.packing.starts)))
        return plain(self, states, batches)

    monkeypatch.setattr(PackedModel, "loss_sums", loss_sums)
    config = replace(CONFIG, micro_batch_tokens=60)
    with cores(1):
        list(FusedEngine(base, train, held_out, config, pack_size=2).train(TRIALS[:2]))
    assert all(tokens <= 60 or examples == 1 for tokens, examples in sizes)
    assert len(sizes) > 2 * STEPS  # in whole batches, both trials would share a pass each step


def test_training_stops_between_steps_when_asked(tiny: Tiny) -> None:
    base, train, _ = tiny
    stop = threading.Event()
    loop = TrainingLoop(base, train, Limits(1, None), after_step=lambda states: stop.set())
    state = TrainingState(TRIALS[0], base, saved_modules(base), CONFIG, train)
    before = set(threading.enumerate())
    with packed_model(base) as model:
        loop.train(model, [state], stop)
    assert state.started == 1
    assert set(threading.enumerate()) == before  # the one that made batches has ended


def test_figures_that_are_read_seldom_are_the_same(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a trial that has diverged is found some steps later."""
    base, train, held_out = tiny
    trials = [TRIALS[0], replace(TRIALS[0], learning_rate=1e30), TRIALS[1]]
    with cores(1):
        often = list(FusedEngine(base, train, held_out, CONFIG, pack_size=3).train(trials))
        monkeypatch.setitem(STEPS_BETWEEN_READINGS, "cpu", 7)
        seldom = list(FusedEngine(base, train, held_out, CONFIG, pack_size=3).train(trials))
    assert [each.diverged for each in seldom] == [False, True, False]
    assert str(seldom[1].steps) == str(often[1].steps)  # NaN is not equal to itself
    for one, other in zip(seldom[::2], often[::2], strict=True):
        assert_same_training(one, other)
