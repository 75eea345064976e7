"""Casts on ``meta`` against PyTorch's own autocast; whole steps are in test_step.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import maybe_autocast

from rankwise.planning.memory.autocast import CPU_RULES, CUDA_RULES, CastRules, switch_off_inside
from rankwise.planning.memory.devices import CPU, find_device
from rankwise.planning.memory.kernels import DeviceKernels

A100 = find_device("A100-80GB")
COMPOSED = {
    *("rmatmul", "rpow", "square", "rdiv", "rtruediv", "normalize", "interpolate", "grid_sample"),
    *("linalg_norm", "einsum", "cross_entropy"),
}
"""Functions that PyTorch makes of listed operators."""
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "linear": functional.linear,
    "matrix product": lambda single, half: half @ single,
    "einsum": lambda single, half: torch.einsum("ij,jk->ik", single, half),
    "convolution": lambda single, half: functional.conv1d(single[None], half[None, :, :3]),
    "attention": lambda single, half: functional.scaled_dot_product_attention(
        *(3 * [single[None, None]])
    ),
    "cross-entropy": lambda single, half: functional.cross_entropy(half, half.argmax(1)),
    "square error": lambda single, half: functional.mse_loss(half, half),
    "concatenation": lambda single, half: torch.cat([half, single]),
    "stack of halves": lambda single, half: torch.stack([half, half]),
    "power": lambda single, half: half.pow(2),
    "softmax": lambda single, half: functional.softmax(half, dim=-1),
    "layer norm": lambda single, half: functional.layer_norm(half, (8,)),
    "sum": lambda single, half: half.sum(),
    "product": lambda single, half: half.prod(),
    "addition": lambda single, half: half + single,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_have_the_precision_that_a_cpus_autocast_gives(name: str) -> None:
    single, half = torch.rand(8, 8), torch.rand(8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        real = FUNCTIONS[name](single, half)
    with DeviceKernels(CPU, "sdpa", torch.bfloat16):
        planned = FUNCTIONS[name](single.to("meta"), half.to("meta"))
    assert planned.is_meta
    assert planned.dtype is real.dtype


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda x: functional.linear(x, x), torch.float16),
        (lambda x: x @ x.float(), torch.float16),
        (lambda x: x.pow(2), torch.float32),
        (lambda x: 2 / x, torch.float32),
        (lambda x: torch.rsqrt(x), torch.float32),
        (lambda x: functional.softmax(x, dim=-1), torch.float32),
        (lambda x: functional.softmax(x, dim=-1, dtype=torch.float16), torch.float16),
        (lambda x: x.sum(-1), torch.float32),
        (lambda x: functional.layer_norm(x, (8,)), torch.float32),
        (lambda x: torch.linalg.norm(x, dim=1), torch.float32),
        (lambda x: x.mean(-1), torch.float16),
        (lambda x: functional.silu(x), torch.float16),
        (lambda x: x.double() @ x.double(), torch.float64),
    ],
)
def test_results_have_the_precision_that_the_reference_names_for_cuda(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = torch.zeros(8, 8, dtype=torch.float16, device="meta")
    with DeviceKernels(A100, "sdpa", torch.float16):
        assert function(x).dtype is dtype
    assert (x @ x).dtype is torch.float16


@pytest.mark.parametrize(
    ("key", "rules"),
    [("AutocastCPU", CPU_RULES), ("AutocastCUDA", CUDA_RULES)],
    ids=("cpu", "cuda"),
)
def test_every_listed_function_is_registered_in_pytorch(key: str, rules: CastRules) -> None:
    registered = set()
    for operator in torch._C._dispatch_get_all_op_names():
        if torch._C._dispatch_has_kernel_for_dispatch_key(operator, key):
            registered.add(operator.removeprefix("aten::").partition(".")[0])
    if "cross_entropy_loss" in registered:
        registered.add("cross_entropy")
    listed = frozenset().union(*rules)
    assert listed - COMPOSED <= registered
    assert {"linear", "matmul", "bmm", "addmm", "conv2d", "prelu"} <= registered & rules.lower


def test_casts_of_trained_weights_are_kept_until_autocast_ends() -> None:
    trained = nn.Linear(8, 8, bias=False, device="meta")
    frozen = nn.Linear(8, 8, bias=False, device="meta").requires_grad_(False)
    x = torch.zeros(2, 8, device="meta")
    kernels = DeviceKernels(CPU, "sdpa", torch.bfloat16)
    assert kernels.casts is not None
    with kernels:
        frozen(trained(trained(x)))
        with kernels:
            trained(x)
        assert [cast.shape for cast in kernels.casts.kept.values()] == [(8, 8)]
    assert not kernels.casts.kept
    assert not torch.is_autocast_enabled("cpu")


class Rotary(nn.Module):
    """A module that computes in fp32 on a real device, as transformers' rotary embeddings do."""

    def forward(self, x: Tensor) -> Tensor:
        with maybe_autocast(device_type=x.device.type, enabled=False):
            return x @ x


def test_modules_that_switch_autocast_off_run_without_it() -> None:
    rotary = Rotary()
    hooks = switch_off_inside(nn.Sequential(rotary, nn.Linear(8, 8)), "cuda")
    x = torch.zeros(8, 8, device="meta")
    with DeviceKernels(A100, "sdpa", torch.bfloat16):
        assert rotary(x).dtype is torch.float32
        assert (x @ x).dtype is torch.bfloat16
    for hook in hooks:
        hook.remove()
    assert len(hooks) == 2
