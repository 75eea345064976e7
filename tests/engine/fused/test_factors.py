from typing import Any

import pytest
import torch

from rankwise.engine.fused.factors import LoraFactors, StackedFactors

WIDTHS = {"q": (16, 24), "k": (16, 8), "o": (24, 16)}
GROUPS = [("q", "k"), ("o",)]
RANKS = (2, 5, 3)


def adapter(rank: int, scaling: float) -> dict[str, LoraFactors]:
    factors = {}
    for name, (d_in, d_out) in WIDTHS.items():
        a, bt = torch.randn(rank, d_in), torch.randn(rank, d_out)
        factors[name] = LoraFactors(a, bt, torch.ones_like(a), torch.ones_like(bt), scaling)
    return factors


@pytest.fixture(params=[True, False])
def stacked(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    adapters = [
        adapter(rank, scaling) for rank, scaling in zip(RANKS, (1.0, 0.5, 3.0), strict=True)
    ]
    return StackedFactors(adapters, GROUPS, torch.bfloat16, request.param), adapters


def test_copies_are_padded_with_zeros_and_scaled(stacked: Any) -> None:
    stack, adapters = stacked
    stack.refresh()
    for group in GROUPS:
        part = stack.part(group, 0, 3)
        assert part.a.shape[:3] == (len(group), 3, 8)
        for layer, name in enumerate(group):
            for trial, factors in enumerate(each[name] for each in adapters):
                rank = RANKS[trial]
                scaled = factors.a.bfloat16() * factors.scaling
                assert torch.equal(part.a[layer, trial, :rank], scaled)
                assert torch.equal(part.bts[layer][0, trial, :rank], factors.bt.bfloat16())
                assert not part.a[layer, trial, rank:].any()
                assert not part.bts[layer][0, trial, rank:].any()


def test_gradients_come_to_the_buffers_and_none_from_a_step_that_was_given_up(stacked: Any) -> None:
    stack, adapters = stacked
    part = stack.part(("q", "k"), 0, 3)
    part.a_grad.fill_(5.0)
    stack.refresh()
    part.a_grad.add_(2.0)
    part.bt_grads[1].add_(4.0)
    stack.bring_gradients()
    for factors in adapters:
        assert (factors["q"].a_grad == 1 + 2 * factors["q"].scaling).all()
        assert (factors["k"].bt_grad == 5).all()
        assert (factors["q"].bt_grad == 1).all()
        assert (factors["o"].a_grad == 1).all()


def test_a_part_shares_memory_with_the_whole(stacked: Any) -> None:
    stack, _ = stacked
    stack.refresh()
    whole, part = stack.part(("q", "k"), 0, 3), stack.part(("k",), 1, 3)
    assert torch.equal(part.a, whole.a[1:, 1:])
    assert torch.equal(part.bts[0], whole.bts[1][:, 1:])
    part.a_grad.fill_(7.0)
    assert (whole.a_grad[1, 1:] == 7).all()
    assert not whole.a_grad[1, 0].any()


def test_slots_follow_the_order_of_the_stack(stacked: Any) -> None:
    stack, (one, two, three) = stacked
    assert stack.slots([one, three]) == [0, 2]
    assert stack.slots([three, one]) is None
    assert stack.slots([one, dict(two)]) is None
    assert stack.slots([]) is None
    assert stack.holds([one, two, three])
    assert not stack.holds([one, two])


def test_ranks_are_padded_to_8_in_half_precision_and_to_the_highest_in_fp32() -> None:
    adapters = [adapter(rank, 1.0) for rank in (2, 9)]
    for dtype, rank in ((torch.bfloat16, 16), (torch.float32, 9)):
        stack = StackedFactors(adapters, GROUPS, dtype, trial_major=False)
        assert stack.part(("o",), 0, 2).a.shape == (1, 2, rank, 24)


def test_adapters_that_are_scored_only_take_no_gradient_buffers() -> None:
    none = torch.empty(0)
    scored = {
        name: LoraFactors(each.a, each.bt, none, none, 1.0)
        for name, each in adapter(2, 1.0).items()
    }
    part = StackedFactors([scored], GROUPS, torch.float32, trial_major=False).part(("o",), 0, 1)
    assert part.a_grad is None
    assert part.bt_grads == [None]
