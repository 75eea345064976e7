"""What holds for stacked products beyond their values, which test_linear.py compares with PEFT."""

from typing import Any

import pytest
import torch
from torch import nn

from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.linear import fused_layers
from rankwise.engine.fused.segments import LoraSettings
from rankwise.models.compat import intercept_operators

NAMES = ("q_proj", "k_proj", "v_proj")


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, 24) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x) * self.k_proj(x) + self.v_proj(x)


def adapter(rank: int) -> dict[str, LoraFactors]:
    def factors() -> LoraFactors:
        a, bt = torch.randn(rank, 16), torch.randn(rank, 24)
        return LoraFactors(a, bt, torch.zeros_like(a), torch.zeros_like(bt), 0.5)

    return {f"0.{name}": factors() for name in NAMES}


@pytest.mark.parametrize("products", ["masked", "grouped"])
def test_a_pass_runs_as_many_kernels_for_six_trials_as_for_two(products: Any) -> None:
    """``grouped_mm`` counts as one here: on a CPU it is an operator that loops inside."""
    counts = [count_operators(products, trials) for trials in (2, 6)]
    assert counts[0] == counts[1]


def count_operators(products: Any, trials: int) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(Siblings()).requires_grad_(False)
    adapters: list[Any] = [adapter(rank) for rank in range(1, trials + 1)]
    calls: list[Any] = []

    def count(operator: Any, arguments: Any, options: Any) -> Any:
        calls.append(operator)
        return operator(*arguments, **options)

    x = torch.randn(12, 16, requires_grad=True)
    with fused_layers(model, list(adapters[0]), LoraSettings(products)) as segments:
        segments.begin_step(adapters, [None] * trials)
        segments.assign(adapters, [12 // trials] * trials)
        with intercept_operators(count):
            model(x).sum().backward()
        segments.end_step()
    assert all(factors.a_grad.any() for each in adapters for factors in each.values())
    return len(calls)


@pytest.mark.gpu
@pytest.mark.parametrize("products", ["masked", "grouped"])
def test_a_pass_on_a_gpu_waits_for_nothing_and_gives_what_the_loop_gives(products: Any) -> None:
    """In bf16: both ways round inputs and results alike, sums of 16 to 90 terms in between."""
    torch.manual_seed(0)
    model = nn.Sequential(Siblings()).requires_grad_(False).cuda().bfloat16()
    rows = [40, 30, 90, 50]
    kept = torch.randn(sum(rows), 16).cuda().bfloat16()
    direction = torch.randn(sum(rows), 24).cuda().bfloat16()
    first: list[Any] = [adapter(rank) for rank in (2, 8, 3, 5)]
    results = []
    for name in (products, "loop"):
        adapters: list[Any] = [
            {layer: on_gpu(factors) for layer, factors in each.items()} for each in first
        ]
        x = kept.clone().requires_grad_()
        settings = LoraSettings(name, torch.bfloat16)
        with fused_layers(model, list(first[0]), settings) as segments:
            segments.begin_step(adapters, [None] * 4)
            torch.cuda.set_sync_debug_mode("error")
            try:
                segments.assign(adapters, rows)
                y = model(x)
                y.backward(direction)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            segments.end_step()
        grads = [each for a in adapters for f in a.values() for each in (f.a_grad, f.bt_grad)]
        results.append([y.detach(), x.grad, *grads])
    for one, other in zip(*results, strict=True):
        error = (one.float() - other.float()).norm() / other.float().norm()
        assert float(error) < 4 * 2**-8  # a few roundings


def on_gpu(factors: LoraFactors) -> LoraFactors:
    tensors = (factors.a, factors.bt, factors.a_grad, factors.bt_grad)
    return LoraFactors(*(tensor.cuda() for tensor in tensors), factors.scaling)  # type: ignore[call-arg]
