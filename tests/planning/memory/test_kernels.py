from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rankwise.models.compat import intercept_operators
from rankwise.planning.memory.devices import CPU, find_device
from rankwise.planning.memory.kernels import CUDA_SCRATCH, DeviceKernels


def attend(
    kernels: DeviceKernels, *, groups: int, dtype: torch.dtype, masked: bool = False
) -> None:
    query = torch.zeros(2, 4, 8, 16, dtype=dtype, device="meta")
    key = torch.zeros(2, groups, 8, 16, dtype=dtype, device="meta")
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool, device="meta") if masked else None
    with kernels:
        output = functional.scaled_dot_product_attention(
            query, key, key, attn_mask=mask, enable_gqa=groups < 4
        )
    assert output.shape == query.shape and output.dtype == dtype


@pytest.mark.parametrize(
    ("device", "attention", "settings", "kernel"),
    [
        ("A100-80GB", "sdpa", {"groups": 4, "dtype": torch.bfloat16}, "flash"),
        ("A100-80GB", "sdpa", {"groups": 2, "dtype": torch.bfloat16}, "flash"),
        ("T4", "sdpa", {"groups": 4, "dtype": torch.float16}, "efficient"),
        ("A100-80GB", "sdpa", {"groups": 4, "dtype": torch.bfloat16, "masked": True}, "efficient"),
        ("T4", "sdpa", {"groups": 2, "dtype": torch.float16}, "math"),
        ("T4", "flash", {"groups": 2, "dtype": torch.float16}, "efficient"),
        ("cpu", "sdpa", {"groups": 4, "dtype": torch.float32}, "cpu"),
        ("cpu", "sdpa", {"groups": 4, "dtype": torch.float32, "masked": True}, "cpu"),
    ],
    ids=str,
)
def test_device_chooses_its_attention_kernel(
    device: str, attention: str, settings: dict[str, Any], kernel: str
) -> None:
    kernels = DeviceKernels(find_device(device), attention)
    attend(kernels, **settings)
    assert kernels.chosen == {kernel}


def operators_of(kernels: DeviceKernels, x: Tensor, *, second_pass: bool) -> set[str]:
    """Return operators of a checkpointed dropout, in its first or second forward pass."""
    seen: set[str] = set()

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        seen.add(str(operator))
        return operator(*args, **kwargs)

    with kernels, intercept_operators(run):
        output = checkpoint(
            lambda x: functional.dropout(x, 0.1, True) * 2,
            x,
            use_reentrant=False,
            context_fn=kernels.checkpoint_contexts,
            preserve_rng_state=False,
        )
        if second_pass:
            seen.clear()
            output.sum().backward()
    return seen


@pytest.mark.parametrize("second_pass", [False, True])
def test_dropout_is_cudas_in_both_passes_of_checkpointing(second_pass: bool) -> None:
    x = torch.zeros(4, 8, device="meta", requires_grad=True)
    on_gpu = operators_of(DeviceKernels(find_device("T4"), "sdpa"), x, second_pass=second_pass)
    on_cpu = operators_of(DeviceKernels(CPU, "sdpa"), x, second_pass=second_pass)
    assert "aten.native_dropout.default" in on_gpu
    assert "aten.native_dropout.default" not in on_cpu


def test_functions_of_pytorch_are_its_own_again_outside() -> None:
    before = functional.dropout, functional.softmax, functional.scaled_dot_product_attention
    kernels = DeviceKernels(find_device("T4"), "sdpa")
    with pytest.raises(ValueError, match="stop"), kernels:
        raise ValueError("stop")
    attend(DeviceKernels(CPU, "sdpa"), groups=4, dtype=torch.float32)
    assert not kernels.chosen
    after = functional.dropout, functional.softmax, functional.scaled_dot_product_attention
    assert before == after


def test_softmax_of_fp16_in_fp32_allocates_once() -> None:
    seen: list[str] = []

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        seen.append(str(operator))
        return operator(*args, **kwargs)

    x = torch.zeros(4, 8, dtype=torch.float16, device="meta")
    with DeviceKernels(find_device("T4"), "sdpa"), intercept_operators(run):
        result = functional.softmax(x, dim=-1, dtype=torch.float32)
    assert result.dtype is torch.float32
    assert seen == ["aten._softmax.default"]


def test_experts_are_multiplied_in_any_precision() -> None:
    rows = torch.zeros(6, 16, device="meta", requires_grad=True)
    weight = torch.zeros(2, 16, 32, device="meta", requires_grad=True)
    ends = torch.zeros(2, dtype=torch.int32, device="meta")
    with DeviceKernels(CPU, "sdpa"):
        output = functional.grouped_mm(rows, weight, offs=ends)
    output.sum().backward()
    assert output.shape == (6, 32)
    assert rows.grad is not None and rows.grad.shape == rows.shape
    assert weight.grad is not None and weight.grad.shape == weight.shape


def test_scratch_of_flash_attention_counts_padded_queries_and_expanded_keys() -> None:
    scratch = next(size for name, size in CUDA_SCRATCH.items() if "flash" in str(name))
    query = torch.zeros(2, 4, 100, 40, dtype=torch.bfloat16, device="meta")
    key = torch.zeros(2, 2, 100, 40, dtype=torch.bfloat16, device="meta")
    padded = 4 * 2 * 4 * 128 * (64 + 1)  # fp32, 100 rows in blocks of 128, 40 numbers in 64
    assert scratch(query, query, query) == padded
    assert scratch(query, query, key) == padded + 2 * (2 * 4 * 100 * 40 * 2)
