import pytest
import torch
from torch import nn

from rankwise.errors import RequestError
from rankwise.lora.alpha import parse_alpha_policy


@pytest.mark.parametrize("policy", ["r", "2r", "fixed:32", "fixed:0.5", "rslora", "rslora:8"])
def test_scaling_matches_peft(policy: str) -> None:
    from peft import LoraConfig, get_peft_model

    alpha = parse_alpha_policy(policy)
    for rank in (2, 5, 16):
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha.alpha(rank),
            use_rslora=alpha.use_rslora,
            target_modules=["0"],
            lora_dropout=0.0,
        )
        layer = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config).base_model.model[0]
        with torch.no_grad():
            layer.lora_B["default"].weight.normal_()
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # (16, 16)
        torch.testing.assert_close(layer.get_delta_weight("default"), alpha.scaling(rank) * product)


def test_policy_names_are_normalized_and_whole_alphas_are_integers() -> None:
    assert parse_alpha_policy(" R ").name == "r"
    assert parse_alpha_policy("fixed:32.0").name == "fixed:32"
    assert isinstance(parse_alpha_policy("r").alpha(8), int)
    assert [parse_alpha_policy("2r").alpha(rank) for rank in (4, 8)] == [8, 16]
    assert parse_alpha_policy("fixed:32").alpha(64) == 32


@pytest.mark.parametrize(
    "text", ["", "3r", "fixed", "fixed:", "fixed:nan", "fixed:0", "rslora:x", "r:2", "32"]
)
def test_an_unknown_policy_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="allowed: r, 2r"):
        parse_alpha_policy(text)
