"""Steps of several trials at once against torch's, bitsandbytes' and a trial's own, alone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused import optimizer
from rankwise.engine.fused.optimizer import BLOCK, read_figures, scaled, step_all
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.trial import Trial
from rankwise.models.compat import intercept_operators, reads_value
from tests.engine.parity import Tiny
from tests.tiny_models import load_tiny

TRIALS = [
    Trial(rank=3, seed=5, learning_rate=1e-2, lora_alpha=6),
    Trial(rank=2, seed=6, learning_rate=1e-3, lora_alpha=2),
    Trial(rank=4, seed=7, learning_rate=3e-2, lora_alpha=4),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    base, train, held_out = load_tiny("bert", tmp_path_factory.mktemp("bert"))
    base.model.to(request.param)
    return base, train, held_out


def make_states(
    tiny: Tiny, trials: Sequence[Trial] = TRIALS, fp16: bool = False, **changes: Any
) -> list[TrainingState]:
    base, train, _ = tiny
    config = TrainingConfig(epochs=1, batch_size=8, warmup_ratio=0.1, **changes)  # 50 steps
    states = [TrainingState(trial, base, saved_modules(base), config, train) for trial in trials]
    for state in states:
        state.scales_losses = fp16
        state.numbers = optimizer.first_numbers(fp16, state.flat.device)
    return states


def gradient(state: TrainingState, step: int) -> torch.Tensor:
    """Return a made-up gradient of a trial, of a norm around the one at which it is clipped."""
    generator = torch.Generator().manual_seed(100 * state.trial.seed + step)
    values = torch.randn(len(state.flat), generator=generator) * (0.5 + step % 3) / 50
    return values.to(state.flat.device)


def losses_of(states: Sequence[TrainingState], step: int) -> torch.Tensor:
    values = [1.0 / (step + 1 + state.trial.rank) for state in states]
    return torch.tensor(values, device=states[0].flat.device)


def run(states: Sequence[TrainingState], steps: range, wild: dict[int, tuple[int, float]]) -> None:
    """Take steps; ``wild[step] = (k, value)`` puts a value into the gradient of trial k."""
    for step in steps:
        for index, state in enumerate(states):
            state.gradient.copy_(gradient(state, step) * float(state.numbers[1]))
            if wild.get(step, (-1, 0.0))[0] == index:
                state.gradient[0] = wild[step][1]
        step_all(states, losses_of(states, step))
    read_figures(states)


@contextmanager
def read_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "STEPS_BETWEEN_READINGS", {})
        patch.setattr(optimizer, "MOST_UNREAD", steps)
        yield


@pytest.mark.parametrize(
    "changes", [{}, {"weight_decay": 0.1}, {"loraplus_ratio": 4.0, "weight_decay": 0.1}]
)
def test_steps_are_those_of_torch_for_each_trial(tiny: Tiny, changes: dict[str, float]) -> None:
    """Vectors do not decay, as in transformers' Trainer."""
    states = make_states(tiny, **changes)
    decay, ratio = changes.get("weight_decay", 0.0), changes.get("loraplus_ratio", 1.0)
    expected = []
    for state in states:
        rate = state.trial.learning_rate
        groups = []
        for factors in state.factors.values():
            groups.append({"params": [factors.a.clone()], "lr": rate, "weight_decay": decay})
            groups.append(
                {"params": [factors.bt.clone()], "lr": rate * ratio, "weight_decay": decay}
            )
        for module in state.head.values():
            for value in module.parameters():
                matrix = value.ndim > 1
                lr, own_decay = (rate, decay) if matrix else (rate * ratio, 0.0)
                groups.append(
                    {"params": [value.detach().clone()], "lr": lr, "weight_decay": own_decay}
                )
        expected.append(torch.optim.AdamW(groups))
    for step in range(12):
        for state, torch_optimizer in zip(states, expected, strict=True):
            state.gradient.copy_(gradient(state, step))
            views = [
                grad for each in state.factors.values() for grad in (each.a_grad, each.bt_grad)
            ]
            views += [value.grad for each in state.head.values() for value in each.parameters()]
            values = [value for group in torch_optimizer.param_groups for value in group["params"]]
            for value, view in zip(values, views, strict=True):
                value.grad = view.clone()
            norm = torch.nn.utils.clip_grad_norm_(values, 1.0)
            factor = min(step / 5, (50 - step) / 45)
            for group in torch_optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * factor
            torch_optimizer.step()
            state.expected_norm = float(norm)  # type: ignore[attr-defined]
        step_all(states, losses_of(states, step))
        read_figures(states)
        for state in states:
            row = state.steps[-1]
            assert row["grad_norm"] == pytest.approx(state.expected_norm, rel=1e-5)  # type: ignore[attr-defined]
            assert row["learning_rate"] == pytest.approx(
                state.trial.learning_rate * min(step / 5, (50 - step) / 45)
            )
            assert not state.gradient.any()
    for state, torch_optimizer in zip(states, expected, strict=True):
        values = [value for group in torch_optimizer.param_groups for value in group["params"]]
        ours = [value for each in state.factors.values() for value in (each.a, each.bt)]
        ours += [value.detach() for each in state.head.values() for value in each.parameters()]
        for one, other in zip(ours, values, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
@pytest.mark.parametrize("fp16", [False, True])
def test_a_trial_in_a_pack_is_the_trial_alone_to_the_bit(tiny: Tiny, name: str, fp16: bool) -> None:
    wild = {4: (1, math.inf)} if fp16 else {}
    together = make_states(tiny, fp16=fp16, optimizer=name)
    run(together, range(10), wild)
    for index, state in enumerate(together):
        (alone,) = make_states(tiny, [state.trial], fp16, optimizer=name)
        run(
            [alone],
            range(10),
            {step: (0, value) for step, (k, value) in wild.items() if k == index},
        )
        kept, kept_alone = ([*each.tensors(), each.numbers] for each in (state, alone))
        for one, other in zip(kept, kept_alone, strict=True):
            assert torch.equal(one, other)
        assert str(state.steps) == str(alone.steps)  # a norm may be NaN


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
@pytest.mark.parametrize(("value", "interval"), [(math.nan, 1), (math.inf, 4), (-math.inf, 20)])
def test_a_diverged_trial_is_frozen_from_the_step_it_diverged_at(
    tiny: Tiny, name: str, value: float, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late its figures are read; the others do not notice."""
    states, undisturbed = (make_states(tiny, optimizer=name) for _ in range(2))
    run(states, range(3), {})
    before = [tensor.clone() for tensor in states[1].optimizer.tensors()]
    with read_every(interval, monkeypatch):
        run(states, range(3, 12), {3: (1, value)})
    run(undisturbed, range(12), {})
    assert [state.diverged for state in states] == [False, True, False]
    assert states[1].finished
    assert [row["step"] for row in states[1].steps] == [1, 2, 3, 4]
    assert not math.isfinite(states[1].steps[-1]["grad_norm"])
    for tensor, old in zip(states[1].optimizer.tensors(), before, strict=True):
        assert torch.equal(tensor, old)
    for index in (0, 2):
        assert states[index].steps == undisturbed[index].steps
        assert torch.equal(states[index].flat, undisturbed[index].flat)


def test_a_loss_that_is_not_finite_ends_a_trial(tiny: Tiny) -> None:
    states = make_states(tiny)
    before = states[0].flat.clone()
    step_all(states, torch.tensor([math.nan, 1.0, 1.0], device=before.device))
    read_figures(states)
    assert [state.diverged for state in states] == [True, False, False]
    assert torch.equal(states[0].flat, before)


def test_figures_do_not_depend_on_when_they_are_read(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, later = make_states(tiny), make_states(tiny)
    with read_every(1, monkeypatch):
        run(at_once, range(50), {})
    with read_every(20, monkeypatch):
        for step in range(49):
            for state in later:
                state.gradient.copy_(gradient(state, step))
            step_all(later, losses_of(later, step))
            assert len(later[0].steps) == (step + 1) // 20 * 20
        for state in later:
            state.gradient.copy_(gradient(state, 49))
        step_all(later, losses_of(later, 49))  # the last step is read at once
    assert [state.steps for state in later] == [state.steps for state in at_once]
    assert all(state.finished for state in later)


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_steps_between_two_readings_bring_no_number_to_the_host(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = make_states(tiny, fp16=True, optimizer=name)
    read: list[Any] = []

    def note(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if reads_value(operator):
            read.append(operator)
        return operator(*arguments, **options)

    with read_every(20, monkeypatch), intercept_operators(note):
        for step in range(3):
            losses = losses_of(states, step)
            scaled(states, losses)
            step_all(states, losses)
    assert not read


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_steps_between_two_readings_do_not_wait_for_the_gpu(tiny: Tiny, name: str) -> None:
    states = make_states(tiny, fp16=True, optimizer=name)
    losses = losses_of(states, 0)
    step_all(states, losses)  # the first loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_all(states, losses)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_losses_are_scaled_in_fp16_alone(tiny: Tiny) -> None:
    states = make_states(tiny)
    losses = losses_of(states, 0)
    assert scaled(states, losses) is losses
    assert torch.equal(scaled(make_states(tiny, fp16=True), losses), losses * 2.0**16)


@pytest.mark.parametrize(
    "overflows", [[], [0, 1], [2, 3, 4, 9], list(range(0, 20, 2)), [5, 12, 13, 14, 15, 16]]
)
def test_scales_skips_and_parameters_are_those_of_a_grad_scaler(
    overflows: list[int], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "GROWTH_INTERVAL", 4)
    states = make_states(tiny, fp16=True)
    device = states[0].flat.device.type
    state = states[1]
    scaler = torch.amp.GradScaler(device, growth_interval=4)
    expected = torch.nn.Parameter(state.flat.clone())
    torch_optimizer = torch.optim.AdamW([expected], lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(20):
        factor = scaler.scale(torch.ones((), device=device))
        assert float(factor) == float(state.numbers[1])
        expected.grad = gradient(state, step) * factor
        if step in overflows:
            expected.grad[3] = math.inf
        for each in states:
            each.gradient.copy_(gradient(each, step) * each.numbers[1])
        state.gradient.copy_(expected.grad)
        scaler.unscale_(torch_optimizer)
        torch.nn.utils.clip_grad_norm_([expected], 1.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = 1e-3 * state.rate_factor()
        scaler.step(torch_optimizer)
        scaler.update()
        step_all(states, losses_of(states, step))
    torch.testing.assert_close(state.flat, expected.data, rtol=1e-6, atol=1e-8)
    assert not state.diverged
    assert float(states[0].numbers[1]) == 2.0 ** (16 + 20 // 4)


def test_a_trial_whose_scale_falls_to_nothing_has_diverged(tiny: Tiny) -> None:
    states = make_states(tiny, fp16=True)
    before = states[2].flat.clone()
    run(states, range(17), {step: (2, math.nan) for step in range(17)})
    assert [state.diverged for state in states] == [False, False, True]
    assert float(states[2].numbers[1]) == 0.5
    assert len(states[2].steps) == 17
    assert torch.equal(states[2].flat, before)


@pytest.mark.parametrize("changes", [{}, {"loraplus_ratio": 4.0, "weight_decay": 0.1}])
def test_8_bit_steps_are_those_of_bitsandbytes_on_separate_tensors(
    tiny: Tiny, changes: dict[str, float]
) -> None:
    (state,) = make_states(tiny, TRIALS[:1], optimizer="adamw-8bit", **changes)
    decay, ratio = changes.get("weight_decay", 0.0), changes.get("loraplus_ratio", 1.0)
    rate = state.trial.learning_rate
    ours, views, groups = [], [], []
    for factors in state.factors.values():
        ours += [factors.a, factors.bt]
        views += [factors.a_grad, factors.bt_grad]
        groups += [(rate, decay), (rate * ratio, decay)]
    for module in state.head.values():
        for value in module.parameters():
            ours.append(value.data)
            views.append(value.grad)
            groups.append((rate, decay) if value.ndim > 1 else (rate * ratio, 0.0))
    assert all(value.storage_offset() % BLOCK == 0 for value in ours)
    values = [torch.nn.Parameter(value.clone()) for value in ours]
    theirs = AdamW8bit(
        [
            {"params": [value], "lr": lr, "weight_decay": own_decay}
            for value, (lr, own_decay) in zip(values, groups, strict=True)
        ],
        min_8bit_size=1,
    )
    for step in range(10):
        state.gradient.zero_()
        noise = gradient(state, step)
        for value, view in zip(values, views, strict=True):
            view.copy_(noise[: view.numel()].view(view.shape))
            value.grad = view.clone()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        for group, (lr, _) in zip(theirs.param_groups, groups, strict=True):
            group["lr"] = lr * state.rate_factor()
        theirs.step()
        step_all([state], losses_of([state], step))
    for one, other in zip(ours, values, strict=True):
        torch.testing.assert_close(one, other.data, rtol=1e-5, atol=1e-7)
