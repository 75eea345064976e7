import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM

from rankwise.errors import RequestError
from rankwise.formatting import plain_bytes
from rankwise.planning.plan import plan
from tests.tiny_models import write_config

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32,
}  # fmt: skip
EXPERTS = {
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
SEVEN = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def write_mixture(directory: Path, model_type: str) -> str:
    content = {"model_type": model_type, **SMALL, **EXPERTS[model_type]}
    (directory / "config.json").write_text(json.dumps(content))
    return str(directory)


def full_model(model_type: str) -> torch.nn.Module:
    config = AutoConfig.for_model(model_type, **SMALL, **EXPERTS[model_type])
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize("model_type", EXPERTS)
def test_the_note_on_quantisation_says_what_peft_does_with_experts(
    model_type: str, tmp_path: Path
) -> None:
    model = full_model(model_type)
    model.is_loaded_in_4bit = True
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    experts = [p for name, p in model.named_parameters() if "experts." in name and p.ndim == 3]
    assert {parameter.dtype for parameter in experts} == {torch.float32}
    size = plain_bytes(sum(parameter.nbytes for parameter in experts))
    found = plan(write_mixture(tmp_path, model_type), ranks=(4,), seq_len=32)
    (note,) = [note for note in found.notes if note.startswith("int8 and NF4 do not shrink")]
    assert f"turns these to fp32 ({size}), instead of bf16" in note


def test_the_advice_on_quantisation_leaves_the_experts_as_they_are() -> None:
    model = full_model("qwen3_moe")
    model.requires_grad_(False)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    experts = [p for n, p in get_peft_model(model, config).named_parameters() if "experts." in n]
    assert {parameter.dtype for parameter in experts} == {torch.bfloat16}


def test_a_dense_model_has_no_note_on_experts(tmp_path: Path) -> None:
    assert not plan(write_config(tmp_path, "llama"), ranks=(4,), seq_len=32).notes


def test_experts_without_an_adapter_are_named(tmp_path: Path) -> None:
    found = plan(write_mixture(tmp_path, "gpt_oss"), ranks=(4,), seq_len=32)
    assert any("the experts get no adapter" in note for note in found.notes)


def test_experts_that_peft_maps_names_to_have_an_adapter(tmp_path: Path) -> None:
    model = write_mixture(tmp_path, "qwen3_moe")
    found = plan(model, ranks=(4,), seq_len=32, target_modules=SEVEN)
    assert not any("the experts get no adapter" in note for note in found.notes)
    attention = plan(model, ranks=(4,), seq_len=32, target_modules="q_proj,v_proj")
    assert any("the experts get no adapter" in note for note in attention.notes)


def test_names_that_reach_no_expert_are_refused_with_those_that_work(tmp_path: Path) -> None:
    model = write_mixture(tmp_path, "gpt_oss")
    with pytest.raises(RequestError) as error:
        plan(model, ranks=(4,), seq_len=32, target_modules=SEVEN)
    assert "'gate_proj', 'up_proj', 'down_proj': no linear layer" in str(error.value)
    assert "stacked in parameters (down_proj, gate_up_proj)" in str(error.value)
    advice = str(error.value).rpartition("--target-modules ")[2]
    assert advice == "q_proj,k_proj,v_proj,o_proj"
    assert plan(model, ranks=(4,), seq_len=32, target_modules=advice).rows
