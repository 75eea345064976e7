"""Every kind of frozen layer inside `FusedLinear`, compared with PEFT's adapter on that layer."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.frozen import is_fusable
from rankwise.engine.fused.linear import fused_layers
from rankwise.engine.fused.segments import LoraSettings
from tests.engine.fused.stand_ins import grouped_mm

D_IN, D_OUT, RANK, TOKENS = 64, 128, 4, 12
RANKS = {"q_proj": 4, "k_proj": 2, "v_proj": 3}
ALPHAS = {"q_proj": 4.0, "k_proj": 8.0, "v_proj": 1.0}


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
            D_IN,
            D_OUT,
            compute_dtype=torch.float32,
            quant_type="nf4",
            compress_statistics=kind == "nf4-dq",
        )
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")  # which quantises


@pytest.fixture(params=["loop", "masked", "grouped"])
def products(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4", "nf4-dq", "int8"])
@pytest.mark.parametrize("keep_dequantized", [False, True])
def test_output_and_gradients_match_peft(kind: str, products: Any, keep_dequantized: bool) -> None:
    model = nn.Sequential(frozen(kind)).requires_grad_(False)
    assert is_fusable(model[0])
    a, b = torch.randn(RANK, D_IN), torch.randn(D_OUT, RANK)
    x, direction = torch.randn(TOKENS, D_IN), torch.randn(TOKENS, D_OUT)

    factors = LoraFactors(
        a, b.t().contiguous(), torch.zeros(RANK, D_IN), torch.zeros(RANK, D_OUT), scaling=0.5
    )
    ours_x = x.clone().requires_grad_()
    settings = LoraSettings(products, keep_dequantized=keep_dequantized)
    with fused_layers(model, ["0"], settings) as segments:
        adapters: list[Any] = [{"0": factors}]
        segments.begin_step(adapters, [None])
        segments.assign(adapters, [TOKENS])
        ours = model(ours_x)
        ours.backward(direction)
        segments.end_step()

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
    torch.testing.assert_close(factors.a_grad, layer.lora_A["default"].weight.grad, **close)
    torch.testing.assert_close(factors.bt_grad.t(), layer.lora_B["default"].weight.grad, **close)


class Attention(nn.Module):
    """Attention with the names of modelling code; keys and values may get another input."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(D_IN, D_OUT, bias=False) for _ in range(3)
        )

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x).sin() * self.k_proj(z) + self.v_proj(z)


@pytest.mark.parametrize(
    "names", [("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj"), ("q_proj", "v_proj")]
)
@pytest.mark.parametrize("other_input", [False, True])
def test_layers_with_a_shared_input_each_match_peft(
    names: tuple[str, ...], other_input: bool, products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer has its rank and scaling, and two trials have their segments."""
    monkeypatch.setattr("rankwise.engine.fused.products.grouped_mm", grouped_mm)  # in float64
    torch.manual_seed(0)
    model = nn.Sequential(Attention()).double().requires_grad_(False)
    ranks = {f"0.{name}": RANKS[name] for name in names}
    alphas = {f"0.{name}": ALPHAS[name] for name in names}

    def draw(name: str) -> LoraFactors:
        a, bt = torch.randn(ranks[name], D_IN).double(), torch.randn(ranks[name], D_OUT).double()
        return LoraFactors(
            a, bt, torch.zeros_like(a), torch.zeros_like(bt), alphas[name] / ranks[name]
        )

    trials = [{name: draw(name) for name in ranks} for _ in range(2)]
    x = torch.randn(TOKENS, D_IN).double()
    z = torch.randn(TOKENS, D_IN).double() if other_input else x
    direction = torch.randn(TOKENS, D_OUT).double()
    inputs = [value.clone().requires_grad_() for value in (x, z)]
    settings = LoraSettings(products, torch.float64)
    with fused_layers(model, list(ranks), settings) as segments:
        segments.begin_step(trials, [None, None])
        segments.assign(trials, [5, TOKENS - 5])
        ours = model[0](inputs[0], inputs[1] if other_input else inputs[0])
        ours.backward(direction)
        segments.end_step()

    config = LoraConfig(r=1, target_modules=list(names), rank_pattern=ranks, alpha_pattern=alphas)
    inject_adapter_in_model(config, model)
    for trial, rows in zip(trials, (slice(0, 5), slice(5, TOKENS)), strict=True):
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in trial}
        for name, layer in layers.items():
            layer.lora_A["default"].weight = nn.Parameter(trial[name].a.clone())
            layer.lora_B["default"].weight = nn.Parameter(trial[name].bt.t().clone())
        their_inputs = [value[rows].clone().requires_grad_() for value in (x, z)]
        theirs = model[0](their_inputs[0], their_inputs[1] if other_input else their_inputs[0])
        theirs.backward(direction[rows])
        torch.testing.assert_close(ours[rows], theirs)
        for ours_in, theirs_in in zip(inputs[: 1 + other_input], their_inputs, strict=False):
            assert ours_in.grad is not None
            torch.testing.assert_close(ours_in.grad[rows], theirs_in.grad)
        for name, layer in layers.items():
            torch.testing.assert_close(trial[name].a_grad, layer.lora_A["default"].weight.grad)
            torch.testing.assert_close(trial[name].bt_grad.t(), layer.lora_B["default"].weight.grad)
