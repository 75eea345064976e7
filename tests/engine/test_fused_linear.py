"""Every kind of frozen layer under `FusedLinear`, against PEFT's adapter on the same layer."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.fused_linear import Factors, fused_layers, is_fusable

D_IN, D_OUT, RANK, TOKENS = 64, 128, 4, 12


def frozen(kind: str) -> nn.Module:
    """Return a layer with random weights and a bias, quantised where its kind says so."""
    torch.manual_seed(0)
    if kind == "conv1d":
        return Conv1D(D_OUT, D_IN)
    plain = nn.Linear(D_IN, D_OUT)
    if kind == "linear":
        return plain
    layer: Any
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(D_IN, D_OUT, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            D_IN, D_OUT, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=kind == "nf4-dq"
        )
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")  # which quantises


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4", "nf4-dq", "int8"])
def test_output_and_gradients_are_peft_s(kind: str) -> None:
    model = nn.Sequential(frozen(kind)).requires_grad_(False)
    assert is_fusable(model[0])
    a, b = torch.randn(RANK, D_IN), torch.randn(D_OUT, RANK)
    x, direction = torch.randn(TOKENS, D_IN), torch.randn(TOKENS, D_OUT)

    own = Factors(a, b.t().contiguous(), torch.zeros(RANK, D_IN), torch.zeros(RANK, D_OUT), scaling=0.5)
    ours_x = x.clone().requires_grad_()
    with fused_layers(model, ["0"]) as stretches:
        stretches.factors, stretches.bounds = [{"0": own}], [0, TOKENS]
        ours = model(ours_x)
        ours.backward(direction)

    config = LoraConfig(r=RANK, lora_alpha=2, target_modules=["0"], fan_in_fan_out=kind == "conv1d")
    inject_adapter_in_model(config, model)
    layer: Any = model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    theirs_x = x.clone().requires_grad_()
    theirs = model(theirs_x)
    theirs.backward(direction)

    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(ours, theirs, **close)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, **close)
    torch.testing.assert_close(own.a_grad, layer.lora_A["default"].weight.grad, **close)
    torch.testing.assert_close(own.bt_grad.t(), layer.lora_B["default"].weight.grad, **close)
