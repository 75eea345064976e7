"""Optimizer states and scratch against real optimizers after a real step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.planning.memory.optimizers import TrainedParameter, optimizer_memory

SHAPES = [(300, 40), (64, 64), (7,), (256, 128)]


def adafactor(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(params, lr=1e-3, relative_step=False, scale_parameter=False)


def bitsandbytes(name: str) -> Callable[[list[torch.nn.Parameter]], Any]:
    def make(params: list[torch.nn.Parameter]) -> Any:
        import bitsandbytes as bnb

        return getattr(bnb.optim, name)(params, lr=1e-3)

    return make


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], Any]] = {
    "adamw": lambda params: torch.optim.AdamW(params),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adafactor": adafactor,
    "adamw-8bit": bitsandbytes("AdamW8bit"),
    "lion": bitsandbytes("Lion"),
}


PRECISIONS = [torch.float32, torch.bfloat16]


def trained(dtype: torch.dtype = torch.float32) -> list[TrainedParameter]:
    return [TrainedParameter(shape, dtype.itemsize) for shape in SHAPES]


def stepped(name: str, dtype: torch.dtype) -> tuple[Any, list[torch.nn.Parameter]]:
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in SHAPES]
    optimizer = OPTIMIZERS[name](params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_equal_those_of_a_real_optimizer(name: str, dtype: torch.dtype) -> None:
    optimizer, _ = stepped(name, dtype)
    tensors = {
        id(value): value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        # Step counts, and the table of 8-bit values, which all parameters share.
        if isinstance(value, torch.Tensor) and value.dim() > 0 and not key.startswith("qmap")
    }
    memory = optimizer_memory(name, trained(dtype), on_cpu=True)
    assert memory.states == sum(tensors.values())
    assert memory.paged == 0


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_scratch_on_the_cpu_is_enough_but_less_than_twice_too_much(
    name: str, dtype: torch.dtype
) -> None:
    optimizer, params = stepped(name, dtype)
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    resident = [*params, *(param.grad for param in params if param.grad is not None), *states]
    measured = peak_live_bytes(optimizer.step, resident) - sum(tensor.nbytes for tensor in resident)
    scratch = optimizer_memory(name, trained(dtype), on_cpu=True).scratch
    # Row and column means and single numbers are left out.
    assert measured <= 1.02 * scratch + 1024
    assert scratch <= 2 * measured + 1024


@pytest.mark.parametrize("dtypes", [["float32"], ["bfloat16"], ["float32", "bfloat16"]], ids=str)
def test_multi_tensor_step_takes_one_more_copy_of_all_parameters(dtypes: list[str]) -> None:
    kinds = [getattr(torch, dtype) for dtype in dtypes]
    params = [
        torch.nn.Parameter(torch.ones(shape, dtype=dtype, device="meta"))
        for dtype in kinds
        for shape in SHAPES
    ]
    optimizer = torch.optim.AdamW(params, foreach=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    states = [
        value for state in optimizer.state.values() for value in state.values() if value.dim() > 0
    ]
    resident = [*params, *(param.grad for param in params if param.grad is not None), *states]
    measured = peak_live_bytes(optimizer.step, resident) - sum(tensor.nbytes for tensor in resident)
    scratch = optimizer_memory(
        "adamw", [one for dtype in kinds for one in trained(dtype)], on_cpu=False
    ).scratch
    assert scratch == pytest.approx(measured, abs=1024)


def test_paged_states_are_counted_separately() -> None:
    large, small = (400, 400), (8, 8)
    memory = optimizer_memory(
        "paged-adamw",
        [TrainedParameter(large, 2, repeats=2), TrainedParameter(small, 2)],
        on_cpu=False,
    )
    assert memory.paged == 2 * 8 * math.prod(large)
    assert memory.states == 8 * math.prod(small)


def test_each_allocation_is_rounded_up() -> None:
    assert (
        optimizer_memory(
            "adamw", [TrainedParameter((3,), 4, repeats=5)], on_cpu=False, block=512
        ).states
        == 5 * 2 * 512
    )
