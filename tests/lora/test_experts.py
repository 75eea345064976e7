"""Adapters on stacked experts, held to PEFT's own delta weights."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from transformers import AutoConfig, AutoModelForCausalLM

from rankwise.errors import RequestError
from rankwise.lora import read_adapter, spectrum
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.experts import stacked_parameters
from rankwise.lora.resize import resize

SMALL = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24,
}  # fmt: skip
MODELS = {
    "qwen3_moe": {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},  # (experts, d_in, d_out)
}
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base_model(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SMALL, **MODELS[model_type])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def expert_deltas(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return PEFT's delta weight of each parameter, (experts, ...)."""
    return {
        module.parameter_name: module.get_delta_weight("default").detach()
        for module in model.modules()
        if isinstance(module, ParamWrapper)
    }


@pytest.fixture(params=list(MODELS))
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, PeftModel]:
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj"],
        target_parameters=TARGETS,
        rank_pattern={"experts.down_proj": 3},
    )
    model = get_peft_model(base_model(request.param), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    return request.param, tmp_path / "adapter", model


def test_every_expert_has_the_singular_values_of_its_delta_weight(
    trained: tuple[str, Path, PeftModel],
) -> None:
    _, directory, model = trained
    found = {layer.pair.name: layer for layer in spectrum(read_adapter(directory)).layers}
    assert len(found) == 1 + 2 * 4
    for parameter, delta in expert_deltas(model).items():
        for index in range(4):
            layer = found[f"model.layers.0.mlp.experts.{parameter}.{index}"]
            expected = torch.linalg.svdvals(delta[index])[: layer.pair.rank]
            assert layer.pair.rank == (3 if parameter == "down_proj" else 4)
            torch.testing.assert_close(
                layer.singular_values.float(), expected, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("size", [{"rank": 2}, {"rank": 6}, {"energy": 0.8}])
def test_peft_loads_resized_experts_with_the_best_approximation(
    trained: tuple[str, Path, PeftModel], tmp_path: Path, size: dict[str, float]
) -> None:
    model_type, directory, model = trained
    resized = resize(directory, tmp_path / "out", **size)  # type: ignore[arg-type]
    ranks = {layer.name: layer.rank for layer in resized.layers}
    loaded = PeftModel.from_pretrained(base_model(model_type), tmp_path / "out")
    for parameter, delta in expert_deltas(loaded).items():
        before = expert_deltas(model)[parameter]
        for index in range(4):
            rank = ranks[f"model.layers.0.mlp.experts.{parameter}.{index}"]
            u, values, v = torch.linalg.svd(before[index])
            best = u[:, :rank] * values[:rank] @ v[:rank]
            torch.testing.assert_close(delta[index], best, atol=1e-3, rtol=1e-3)


def test_a_budget_is_refused_with_the_sizes_that_work(
    trained: tuple[str, Path, PeftModel], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="share one rank; allowed are one rank"):
        resize(trained[1], tmp_path / "out", rank_pattern="auto:5000")


def test_experts_of_unknown_parameters_have_the_names_of_the_tensors() -> None:
    config = {"target_parameters": ["experts.first", "experts.second"]}
    layers = ["h.0.experts", "h.0.experts.base_layer", "h.0.q"]
    assert stacked_parameters(config, layers) == {
        "h.0.experts.base_layer": "h.0.experts.base_layer",
        "h.0.experts": "h.0.experts",
    }


def test_one_targeted_parameter_of_two_dimensions_is_a_plain_layer(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=[], target_parameters=["q_proj.weight"])
    get_peft_model(base_model("qwen3_moe"), config).save_pretrained(tmp_path)
    (pair,) = factor_pairs(read_adapter(tmp_path))
    assert (pair.rank, pair.d_in, pair.d_out, pair.experts) == (4, 16, 16, 1)
