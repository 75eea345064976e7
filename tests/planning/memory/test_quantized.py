"""Stand-ins of quantised layers by hand-counted bytes; real quantised steps are in test_step.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rankwise.planning.memory.quantized import (
    Int8Linear,
    NF4Linear,
    QuantizedLinear,
    largest_dequantized,
    quantize,
)
from rankwise.planning.meta_model import load_meta_model
from tests.tiny_models import write_config

D_IN, D_OUT = 128, 256
WEIGHTS = D_IN * D_OUT


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(D_IN, D_OUT, bias, device="meta", dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (
            lambda: NF4Linear(linear(False), torch.bfloat16, False, double=False),
            WEIGHTS // 2 + 4 * WEIGHTS // 64 + 4 * 16,
        ),
        (
            lambda: NF4Linear(linear(False), torch.bfloat16, False, double=True),
            WEIGHTS // 2 + WEIGHTS // 64 + 4 * 16 + 4 * WEIGHTS // 64 // 256 + 4 * 256 + 4,
        ),
        (lambda: Int8Linear(linear(False), torch.bfloat16, False), WEIGHTS + 4 * D_OUT),
    ],
)
def test_layer_keeps_packed_weights_and_scales(
    make: Callable[[], QuantizedLinear], size: int
) -> None:
    layer = make()
    assert sum(parameter.nbytes for parameter in layer.parameters()) == size
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert largest_dequantized(nn.Sequential(layer, nn.Linear(2, 2))) == 2 * WEIGHTS


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layer_passes_gradients_to_its_input_only(kind: str, on_cpu: bool) -> None:
    layer: QuantizedLinear
    if kind == "nf4":
        layer = NF4Linear(linear(), torch.bfloat16, on_cpu, double=False)
    else:
        layer = Int8Linear(linear(), torch.bfloat16, on_cpu)
    x = torch.zeros(2, 5, D_IN, dtype=torch.float32, device="meta", requires_grad=True)
    output = layer(x)
    assert output.shape == (2, 5, D_OUT) and output.dtype is torch.float32
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_output_layer_and_modules_trained_in_full_are_not_quantised(tmp_path: Path) -> None:
    meta = load_meta_model(write_config(tmp_path, "llama"), torch.bfloat16)
    quantize(meta.model, "nf4-dq", torch.bfloat16, on_cpu=False, keep=("q_proj",))
    kinds = {name.rsplit(".", 1)[-1]: type(module) for name, module in meta.model.named_modules()}
    assert kinds["v_proj"] is kinds["down_proj"] is NF4Linear
    assert kinds["q_proj"] is kinds["lm_head"] is nn.Linear
