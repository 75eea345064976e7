"""Dropout of adapters' inputs: its statistics, its streams, and its gradients."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.fused import loss
from rankwise.engine.fused import products as products_module
from rankwise.engine.fused.dropout import Dropout, DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.linear import fused_layers
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.segments import LoraSettings
from rankwise.engine.fused.training_state import TrainingState
from rankwise.models.base_model import load_base
from rankwise.tasks.losses import CompletionObjective
from tests.engine.fused.stand_ins import grouped_mm
from tests.engine.parity import CONFIG, TRIALS, Tiny
from tests.tiny_models import load_tiny, load_tiny_lm

RATE = 0.25
STREAM = DropoutStream(seed=3, step=5)


def mask(stream: DropoutStream = STREAM, layer: str = "q", rows: int = 400) -> torch.Tensor:
    return Dropout(RATE, layer, [stream], [0, rows]).mask(torch.zeros(rows, 500)).float()


def test_the_share_that_is_kept_is_as_asked_everywhere() -> None:
    kept = mask()
    deviation = (RATE * (1 - RATE)) ** 0.5
    assert abs(float(kept.mean()) - (1 - RATE)) < 4 * deviation / 200_000**0.5
    # By column and by row: 500 and 400 means of a binomial; 5 deviations happen once in 2,000 runs.
    assert (kept.mean(0) - (1 - RATE)).abs().max() < 5 * deviation / 400**0.5
    assert (kept.mean(1) - (1 - RATE)).abs().max() < 5 * deviation / 500**0.5


@pytest.mark.parametrize(
    "other",
    [
        mask(replace(STREAM, seed=4)),
        mask(replace(STREAM, step=6)),
        mask(replace(STREAM, micro_batch=1)),
        mask(layer="k"),
        mask().roll(1, 0),
        mask().roll(1, 1),
    ],
    ids=["seed", "step", "micro-batch", "layer", "row", "column"],
)
def test_masks_are_independent(other: torch.Tensor) -> None:
    one = mask().flatten() - (1 - RATE)
    correlation = float((one * (other.flatten() - (1 - RATE))).mean()) / (RATE * (1 - RATE))
    assert abs(correlation) < 4 / 200_000**0.5


def test_kept_entries_are_divided_by_the_share_that_is_kept() -> None:
    dropout = Dropout(RATE, "q", [STREAM], [0, 400])
    rows = torch.full((400, 500), 3.0)
    drawn = dropout.mask(rows)
    assert torch.equal(dropout.apply(rows, drawn), drawn * 4.0)


def test_a_trial_of_a_pack_has_the_masks_that_it_has_alone() -> None:
    rows = torch.zeros(9, 16)
    streams = [STREAM, replace(STREAM, seed=1)]
    both = Dropout(RATE, "q", streams, [0, 4, 9]).mask(rows)
    for stream, part in zip(streams, (both[:4], both[4:]), strict=True):
        alone = Dropout(RATE, "q", [stream], [0, len(part)]).mask(rows[: len(part)])
        assert torch.equal(part, alone)


def test_masks_depend_on_no_number_of_threads_and_not_on_the_precision() -> None:
    expected = mask()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        assert torch.equal(mask(), expected)
    finally:
        torch.set_num_threads(before)
    half = Dropout(RATE, "q", [STREAM], [0, 400]).mask(torch.zeros(400, 500, dtype=torch.bfloat16))
    assert torch.equal(half.float(), expected)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(16, 24), nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x).sin() * self.k_proj(x)


@pytest.mark.parametrize("products", ["loop", "masked", "grouped"])
def test_gradients_are_those_of_autograd_with_the_same_masks(
    products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, in the second micro-batch of a step."""
    monkeypatch.setattr(products_module, "grouped_mm", grouped_mm)
    torch.manual_seed(0)
    model = nn.Sequential(Pair()).double().requires_grad_(False)
    names, rows, streams = ["0.q_proj", "0.k_proj"], [4, 5], [STREAM, replace(STREAM, seed=1)]

    def factors(rank: int, scaling: float) -> LoraFactors:
        a, bt = torch.randn(rank, 16).double(), torch.randn(rank, 24).double()
        return LoraFactors(a, bt, torch.zeros_like(a), torch.zeros_like(bt), scaling)

    adapters = [{name: factors(rank, 1 / rank) for name in names} for rank in (2, 3)]
    x = torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    settings = LoraSettings(products, torch.float64, RATE)
    with fused_layers(model, names, settings) as segments:
        segments.begin_step(adapters, streams)
        for _ in range(2):
            segments.begin_pass(adapters)
        segments.assign(adapters, rows)
        ours = model(x)
        (dx,) = torch.autograd.grad(ours.sum(), x)
        segments.end_step()
        model.eval()
        scored = model(x.detach())

    def plain(keep: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        outputs, leaves = [], []
        for trial, part in enumerate(x.split(rows)):
            stream, ys = replace(streams[trial], micro_batch=1), []
            for name in names:
                one = adapters[trial][name]
                a, bt = one.a.clone().requires_grad_(), one.bt.clone().requires_grad_()
                leaves += [a, bt]
                dropout = Dropout(RATE, name, [stream], [0, len(part)])
                dropped = part if keep else part * dropout.mask(part) / (1 - RATE)
                base = model.get_submodule(name)
                ys.append(base(part) + one.scaling * (dropped @ a.t()) @ bt)
            outputs.append(ys[0].sin() * ys[1])
        return torch.cat(outputs), leaves

    expected, leaves = plain(keep=False)
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad(expected.sum(), [x, *leaves])
    torch.testing.assert_close(dx, gradients[0])
    buffers = [
        buffer
        for adapter in adapters
        for name in names
        for buffer in (adapter[name].a_grad, adapter[name].bt_grad)
    ]
    for buffer, gradient in zip(buffers, gradients[1:], strict=True):
        torch.testing.assert_close(buffer, gradient)
    torch.testing.assert_close(scored, plain(keep=True)[0])


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("tiny", ["bert", "llama"], indirect=True)
@pytest.mark.parametrize("products", ["loop", "masked"])
def test_a_trial_of_a_pack_trains_as_alone_and_is_scored_without_dropout(
    tiny: Tiny, products: Any
) -> None:
    """Over two micro-batches of a step, with and without gradient checkpointing."""
    base, train, _ = tiny
    saved, trials = saved_modules(base), (TRIALS[0], TRIALS[1])
    states = [TrainingState(trial, base, saved, CONFIG, train) for trial in trials]
    torch.manual_seed(0)
    for state in states:  # B is 0 in an untrained adapter
        state.flat.add_(torch.randn_like(state.flat) * 0.05)

    def gradient(chosen: list[TrainingState], checkpointing: bool, rate: float) -> Any:
        options: Any = {"dropout": rate, "products": products, "checkpointing": checkpointing}
        with packed_model(base, **options) as model:
            base.model.train()
            model.begin_step(chosen)
            for rows in ([0, 1, 2], [3, 4]):
                batch = train.take(rows)
                model.loss_sums(chosen, [batch] * len(chosen)).sum().backward()
            model.end_step()
            base.model.eval()
            with torch.inference_mode():
                losses = model.measures(chosen[-1:], train.take([5, 6, 7]))[0]["loss"]
        grad: Any = chosen[-1].flat.grad
        last = grad.clone()
        for state in chosen:
            state.flat.grad.zero_()
        return last, losses

    together, scored = gradient(states, False, RATE)
    alone, scored_alone = gradient(states[1:], False, RATE)
    again, _ = gradient(states, True, RATE)
    without, scored_without = gradient(states, False, 0.0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together, again, rtol=1e-4, atol=1e-6)
    assert float((together - without).norm() / without.norm()) > 0.05
    for losses in (scored_alone, scored_without):
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(scored), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("products", ["loop", "masked"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_chunk_of_a_head_has_a_mask_of_its_own(
    products: Any, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same when the chunk runs again, and in a pack."""
    tiny, train, _ = load_tiny_lm("llama", tmp_path)
    base = load_base(tiny.name, CompletionObjective(), ["q_proj", "lm_head"], [2])
    saved = saved_modules(base)
    states = [TrainingState(trial, base, saved, CONFIG, train) for trial in TRIALS[:2]]
    torch.manual_seed(0)
    for state in states:
        state.flat.add_(torch.randn_like(state.flat) * 0.05)
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 4)
    drawn: Counter[tuple[int, bytes]] = Counter()
    plain = Dropout.mask

    def mask(self: Dropout, rows: torch.Tensor) -> torch.Tensor:
        result = plain(self, rows)
        if self.layer == "lm_head":
            drawn[self.streams[0].seed, result.numpy().tobytes()] += 1
        return result

    monkeypatch.setattr(Dropout, "mask", mask)
    batch = train.take([0, 1, 2])
    chunks = -(-batch.loss_count // 4)

    def run(chosen: list[TrainingState]) -> tuple[torch.Tensor, Counter[tuple[int, bytes]]]:
        drawn.clear()
        options: Any = {"dropout": RATE, "products": products, "checkpointing": checkpointing}
        with packed_model(base, **options) as model:
            base.model.train()
            model.begin_step(chosen)
            model.loss_sums(chosen, [batch] * len(chosen)).sum().backward()
            model.end_step()
        grad: Any = chosen[-1].flat.grad
        last = grad.clone()
        for state in chosen:
            state.flat.grad.zero_()
        return last, drawn.copy()

    alone, masks = run(states[1:])
    together, masks_of_both = run(states)
    assert chunks > 2
    assert len(masks) == chunks
    assert set(masks.values()) == {3}  # the loss, the loss again for gradients, and these
    assert set(masks) <= set(masks_of_both)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
