import math
from typing import Any

import pytest
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.batches import epoch_batches
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.training_state import EvalAdapter, TrainingState
from rankwise.engine.trial import Trial
from rankwise.lora.adapter import Adapter
from tests.engine.parity import Tiny
from tests.tiny_models import load_tiny

TRIAL = Trial(rank=3, seed=5, learning_rate=1e-2, lora_alpha=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("bert", tmp_path_factory.mktemp("bert"))


def make_state(tiny: Tiny, trial: Trial = TRIAL, **changes: Any) -> TrainingState:
    base, train, _ = tiny
    config = TrainingConfig(epochs=2, batch_size=8, **changes)
    return TrainingState(trial, base, saved_modules(base), config, train)


def test_factors_and_head_are_views_of_the_flat_tensor(tiny: Tiny) -> None:
    state = make_state(tiny)
    state.flat.copy_(torch.arange(1.0, len(state.flat) + 1))
    assert state.flat.grad is not None
    state.flat.grad.copy_(state.flat)
    values, grads = [], []
    for factors in state.factors.values():
        values += [factors.a, factors.bt]
        grads += [factors.a_grad, factors.bt_grad]
    for module in state.head.values():
        values += [parameter.data for parameter in module.parameters()]
        grads += [parameter.grad for parameter in module.parameters()]
    entries = torch.cat([value.flatten() for value in values])
    assert torch.equal(entries.sort().values, state.flat)  # each entry once, none left over
    assert torch.equal(torch.cat([grad.flatten() for grad in grads]), entries)
    assert sum(value.numel() for value in state.adapter().values()) == len(state.flat)


def test_matrices_and_a_come_before_b_and_vectors(tiny: Tiny) -> None:
    state = make_state(tiny, loraplus_ratio=4.0)
    slow, fast = state.optimizer.parts  # type: ignore[attr-defined]
    assert (slow.start, slow.stop, fast.stop) == (0, fast.start, len(state.flat))
    assert (slow.learning_rate, fast.learning_rate) == (1e-2, 4e-2)
    state.flat.zero_()
    state.flat[fast.start :] = 1.0
    for factors in state.factors.values():
        assert not factors.a.any()
        assert bool(factors.bt.all())
    for module in state.head.values():
        for parameter in module.parameters():
            assert bool(parameter.all()) == (parameter.ndim == 1)


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 2.0), (True, 6 / math.sqrt(3))])
def test_scaling_is_that_of_the_trial(tiny: Tiny, use_rslora: bool, scaling: float) -> None:
    trial = Trial(rank=3, seed=5, learning_rate=1e-2, lora_alpha=6, use_rslora=use_rslora)
    factors = make_state(tiny, trial).factors
    assert {each.scaling for each in factors.values()} == {scaling}


def test_batches_follow_the_seed_through_the_epochs(tiny: Tiny) -> None:
    state = make_state(tiny)
    lengths = tiny[1].lengths
    expected = [*epoch_batches(lengths, 8, 5, 0), *epoch_batches(lengths, 8, 5, 1)]
    assert state.total_steps == 100
    assert [state.batch(step) for step in range(100)] == expected


def test_matrices_alone_decay(tiny: Tiny) -> None:
    state = make_state(tiny, weight_decay=0.1)
    matrices, vectors = state.optimizer.parts  # type: ignore[attr-defined]
    assert (matrices.weight_decay, vectors.weight_decay) == (0.1, 0.0)
    state.flat.zero_()
    state.flat[vectors.start :] = 1.0
    for factors in state.factors.values():
        assert not factors.a.any() and not factors.bt.any()
    for module in state.head.values():
        for parameter in module.parameters():
            assert bool(parameter.all()) == (parameter.ndim == 1)


def test_8_bit_parameters_start_where_a_block_of_states_starts(tiny: Tiny) -> None:
    state = make_state(tiny, optimizer="adamw-8bit")
    starts = [each.storage_offset() for f in state.factors.values() for each in (f.a, f.bt)]
    starts += [value.storage_offset() for m in state.head.values() for value in m.parameters()]
    assert len(set(starts)) == len(starts)
    assert all(start % 256 == 0 for start in starts)
    plain = make_state(tiny)
    for key, value in plain.adapter().items():
        assert torch.equal(state.adapter()[key], value)


def test_figures_end_at_the_step_at_which_a_trial_diverged(tiny: Tiny) -> None:
    state = make_state(tiny)
    for _ in range(4):
        state.add_unread(torch.zeros(3))
    assert state.started == 4
    assert not state.steps
    state.record([[0.5, 1.0, 1.0], [0.25, math.inf, 0.0], [math.nan] * 3, [math.nan] * 3])
    assert state.diverged and state.finished
    assert [row["train_loss"] for row in state.steps] == [0.5, 0.25]
    assert [row["epoch"] for row in state.steps] == [1 / 50, 2 / 50]
    assert state.steps[1]["learning_rate"] == pytest.approx(1e-2 / 30)
    assert not state.unread


def test_a_finished_adapter_has_the_factors_and_the_head_of_its_training(tiny: Tiny) -> None:
    state = make_state(tiny)
    torch.manual_seed(1)
    state.flat.copy_(torch.randn_like(state.flat))
    loaded = EvalAdapter(tiny[0], Adapter(state.adapter(), state.adapter_config))
    assert loaded.factors.keys() == state.factors.keys()
    for name, factors in state.factors.items():
        assert torch.equal(loaded.factors[name].a, factors.a)
        assert torch.equal(loaded.factors[name].bt, factors.bt)
        assert loaded.factors[name].scaling == factors.scaling
    for name, module in state.head.items():
        for key, value in module.state_dict().items():
            assert torch.equal(loaded.head[name].state_dict()[key], value)
