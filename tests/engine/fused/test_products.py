"""Products of a pack's rows with stacked factors, against a plain loop over trials, in float64."""

from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.engine.fused import products
from rankwise.engine.fused.products import GroupedProducts, MaskedProducts, choose_products
from tests.engine.fused.stand_ins import grouped_mm

LAYERS, RANK, WIDTH = 2, 8, 16
CPU = torch.device("cpu")
# Like lengths, unlike ones (gradients go trial by trial), one trial, and one without rows.
ROWS = ([5, 4, 6], [1, 30, 2], [7], [4, 0, 5])
KINDS = (GroupedProducts, MaskedProducts)


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "grouped_mm", grouped_mm)


def case(kind: Any, rows: list[int]) -> tuple[Any, torch.Tensor, torch.Tensor, list[int]]:
    torch.manual_seed(0)
    bounds = [0, *accumulate(rows)]
    if kind is GroupedProducts:  # layers of a trial lie together
        stack = torch.randn(len(rows), LAYERS, RANK, WIDTH, dtype=torch.float64).transpose(0, 1)
    else:
        stack = torch.randn(LAYERS, len(rows), RANK, WIDTH, dtype=torch.float64)
    x = torch.randn(sum(rows), WIDTH, dtype=torch.float64)
    return kind(bounds, CPU), stack, x, bounds


def own(low: torch.Tensor, stack: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    """Return what a product with each row's own factors gives, (T, n, R)."""
    if low.shape[1] == LAYERS * RANK:
        return low.view(-1, LAYERS, RANK)
    by_trial = low.view(len(low), LAYERS, -1, RANK)
    parts = [by_trial[start:stop, :, k] for k, (start, stop) in enumerate(pairwise(bounds))]
    return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_each_row_meets_the_factors_of_its_trial(kind: Any, rows: list[int]) -> None:
    ours, stack, x, bounds = case(kind, rows)
    low = ours.down(x, stack)
    expected_low = torch.cat(
        [
            torch.einsum("td,nrd->tnr", x[start:stop], stack[:, k])
            for k, (start, stop) in enumerate(pairwise(bounds))
        ]
    )
    torch.testing.assert_close(own(low, stack, bounds), expected_low)
    assert low.count_nonzero() == expected_low.count_nonzero()  # nothing from other trials

    y = torch.ones_like(x)
    ours.add_up(y, low, stack)
    expected = torch.cat(
        [
            torch.einsum("tnr,nrd->td", expected_low[start:stop], stack[:, k])
            for k, (start, stop) in enumerate(pairwise(bounds))
        ]
    )
    torch.testing.assert_close(y, 1 + expected)

    gradient = torch.ones_like(stack)
    ours.add_gradient(gradient, low, x)
    for k, (start, stop) in enumerate(pairwise(bounds)):
        product = torch.einsum("tnr,td->nrd", expected_low[start:stop], x[start:stop])
        torch.testing.assert_close(gradient[:, k], 1 + product)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[5, 4, 6], [1, 30, 2]])
def test_a_trial_that_is_not_finite_does_not_reach_the_others(kind: Any, rows: list[int]) -> None:
    ours, stack, x, bounds = case(kind, rows)
    x[bounds[1] : bounds[2]] = torch.nan
    low = ours.down(x, stack)
    y, gradient = torch.zeros_like(x), torch.zeros_like(stack)
    ours.add_up(y, low, stack)
    ours.add_gradient(gradient, low, x)
    assert y.isfinite().all(1).tolist() == [
        not bounds[1] <= row < bounds[2] for row in range(len(x))
    ]
    assert gradient.isfinite().all(-1).all(-1).all(0).tolist() == [True, False, True]


def test_a_layer_in_fp32_over_half_precision_keeps_its_precision() -> None:
    ours, stack, x, _ = case(MaskedProducts, [5, 4])
    half = stack.bfloat16()
    y = torch.zeros(len(x), WIDTH)
    ours.add_up(y, ours.down(x.bfloat16(), half), half)
    assert y.dtype == torch.float32
    assert y.count_nonzero() > 0


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((9, 0), torch.bfloat16, "grouped"),  # H100
        ((10, 0), torch.bfloat16, "grouped"),  # B200
        ((8, 0), torch.bfloat16, "masked"),  # A100: PyTorch would loop, and wait for the GPU
        ((12, 0), torch.bfloat16, "masked"),
        ((9, 0), torch.float16, "masked"),
        ((7, 5), torch.float16, "masked"),  # T4
    ],
)
def test_the_kernel_of_grouped_products_is_used_where_pytorch_has_it(
    capability: tuple[int, int], dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu: Any = SimpleNamespace(type="cuda")
    assert choose_products(gpu, dtype) == expected
    assert choose_products(CPU, dtype) == "loop"
    assert choose_products(torch.device("mps"), dtype) == "masked"
