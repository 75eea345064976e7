"""Checkpointed passes, against passes that keep everything."""

import threading
from typing import Any

import pytest
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.fused import loss
from rankwise.engine.fused.checkpointing import checkpointed_blocks, keeps_inputs_alone
from rankwise.engine.fused.model import PackedModel, packed_model
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.errors import RequestError
from rankwise.models.base_model import BaseModel, load_base
from rankwise.tasks.base import Encoded
from rankwise.tasks.losses import CompletionObjective
from tests.engine.parity import CONFIG, TRIALS, Tiny
from tests.tiny_models import load_tiny, load_tiny_lm


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = request.param
    load = load_tiny_lm if name.startswith("lm:") else load_tiny
    return load(name.removeprefix("lm:"), tmp_path_factory.mktemp("tiny"))


def draw_states(base: BaseModel, train: Encoded) -> list[TrainingState]:
    """Return two trials whose B is not 0."""
    saved = saved_modules(base)
    states = [TrainingState(trial, base, saved, CONFIG, train) for trial in TRIALS[:2]]
    for seed, state in enumerate(states):
        torch.manual_seed(seed)
        state.flat.add_(torch.randn_like(state.flat) * 0.05)
    return states


def gradients(model: PackedModel, states: list[TrainingState], parts: list[Encoded]) -> Any:
    """Return losses and gradients of a pass, and set the gradients back to zero."""
    losses = model.loss_sums(states, parts)
    losses.sum().backward()
    return taken(losses, states)


def taken(losses: torch.Tensor, states: list[TrainingState]) -> Any:
    found = [losses.detach().clone()]
    for state in states:
        assert state.flat.grad is not None
        found.append(state.flat.grad.clone())
        state.flat.grad.zero_()
    assert all(bool(each.abs().sum() > 0) for each in found)
    return found


def assert_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one, other)


ARCHITECTURES = ["bert", "modernbert", "gpt2", "llama", "gemma2", "lm:llama", "lm:gemma2"]


@pytest.mark.parametrize("tiny", ARCHITECTURES, indirect=True)
def test_losses_and_gradients_are_the_same_to_the_bit(tiny: Tiny) -> None:
    base, train, _ = tiny
    states = draw_states(base, train)
    parts = [train.take(range(5)), train.take(range(20, 27))]
    with packed_model(base) as model:
        expected = gradients(model, states, parts)
    with packed_model(base, checkpointing=True) as model:
        assert_equal(gradients(model, states, parts), expected)


@pytest.mark.parametrize("tiny", ["bert", "lm:llama"], indirect=True)
def test_a_pass_may_run_before_the_gradients_of_another(tiny: Tiny) -> None:
    """Its own segments and packing come back, also in a thread that never ran a pass."""
    base, train, _ = tiny
    states = draw_states(base, train)
    dropout = 0.3  # draws another mask in every pass of a step
    one, other = [train.take(range(5)), train.take(range(20, 27))], [train.take(range(40, 43))] * 2
    base.model.train()  # with dropout
    with packed_model(base, dropout=dropout) as model:
        model.begin_step(states)
        expected = gradients(model, states, one)
        expected_other = gradients(model, states, other)
    with packed_model(base, dropout=dropout, checkpointing=True) as model:
        model.begin_step(states)
        losses = model.loss_sums(states, one)
        later = model.loss_sums(states[::-1], other[::-1])
        # On a GPU, autograd has a thread of its own.
        thread = threading.Thread(target=losses.sum().backward)
        thread.start()
        thread.join()
        assert_equal(taken(losses, states), expected)
        later.sum().backward()
        assert_equal(taken(later.flip(0), states), expected_other)


@pytest.mark.parametrize("tiny", ["lm:llama"], indirect=True)
def test_a_head_with_an_adapter_runs_again_by_chunks(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, _ = tiny
    base = load_base(tiny[0].name, CompletionObjective(), ["q_proj", "lm_head"], [2])
    states = draw_states(base, train)
    parts = [train.take(range(5)), train.take(range(20, 27))]
    with packed_model(base) as model:
        whole = gradients(model, states, parts)
        outputs = len(base.tokenizer)
        monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 4 * outputs)
        by_chunks = gradients(model, states, parts)
    torch.testing.assert_close(by_chunks, whole)


@pytest.mark.parametrize("tiny", ["lm:llama"], indirect=True)
def test_blocks_keep_their_inputs_alone(tiny: Tiny) -> None:
    base, train, _ = tiny
    states = draw_states(base, train)[:1]
    parts = [train.take(range(64))]
    kept: dict[bool, int] = {}
    for checkpointing in (False, True):
        with packed_model(base, checkpointing=checkpointing) as model:
            kept[checkpointing] = kept_bytes(model, states, parts)
    tokens = sum(parts[0].lengths)
    width, blocks = base.model.config.hidden_size, len(checkpointed_blocks(base.model))
    # Inputs of the blocks, and what the last norm and the head keep for the gradient.
    assert kept[True] < 4 * tokens * width * (blocks + 4)
    assert kept[False] > 4 * tokens * width * 10 * blocks


def kept_bytes(model: PackedModel, states: list[TrainingState], parts: list[Encoded]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}
    known = {id(each.untyped_storage()) for each in model.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss_sums(states, parts)
    return sum(kept.values())


@pytest.mark.parametrize("tiny", ["lm:llama"], indirect=True)
def test_a_step_takes_less_memory(tiny: Tiny) -> None:
    base, train, _ = tiny
    states = draw_states(base, train)[:1]
    parts = [train.take(range(64))]
    resident = [*base.model.parameters(), *states[0].tensors()]
    peaks = []
    for checkpointing in (False, True):
        with packed_model(base, checkpointing=checkpointing) as model:
            peaks.append(
                peak_live_bytes(lambda model=model: gradients(model, states, parts), resident)
            )
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("tiny", ["bert"], indirect=True)
def test_the_blocks_are_restored(tiny: Tiny) -> None:
    base = tiny[0]
    with packed_model(base, checkpointing=True):
        assert all("forward" in vars(each) for each in checkpointed_blocks(base.model))
    assert not any("forward" in vars(each) for each in checkpointed_blocks(base.model))


def test_a_model_without_such_blocks_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    assert not keeps_inputs_alone(model, "off")
    assert not keeps_inputs_alone(model, "auto")
    with pytest.raises(RequestError, match="gradient_checkpointing 'on': Linear has none"):
        keeps_inputs_alone(model, "on")
