"""What an adapter trains besides its factors, and names of tensors in hand-made state dicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rankwise.errors import RequestError
from rankwise.lora import read_adapter
from rankwise.lora.inspection import inspect_adapter
from rankwise.lora.parts import BASE, describe_parts, other_parts, plain_names
from rankwise.lora.resize import resize


def make_model(**lora: Any) -> PeftModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=32, num_hidden_layers=2, num_key_value_heads=1, attention_bias=True, **sizes
    )
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **lora),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.ndim == 2:
            parameter.data.normal_()
    return model


@pytest.mark.parametrize(
    ("lora", "kind", "layers"),
    [
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "whole layers", 2),
        ({"trainable_token_indices": {"embed_tokens": [3, 5]}}, "rows of tokens", 1),
        ({"use_dora": True}, "magnitudes of DoRA", 4),
        ({"lora_bias": True}, "biases of B", 4),
        ({"bias": "lora_only"}, "biases", 4),
    ],
)
def test_parts_are_what_peft_trains_besides_the_factors(
    lora: dict[str, Any], kind: str, layers: int, tmp_path: Path
) -> None:
    model = make_model(**lora)
    model.save_pretrained(tmp_path)
    found = inspect_adapter(tmp_path)
    trained = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    in_full = [size for n, size in trained if not ("lora_" in n and n.endswith("default.weight"))]
    if "use_dora" in lora:
        in_full = [size for n, size in trained if "magnitude" in n]
    counted = [part for part in found.parts if part.kind != BASE]
    assert sum(part.params for part in counted) == sum(in_full)
    assert len(counted) == layers
    assert all(part.kind.startswith(kind) for part in counted)
    document = json.loads(json.dumps(found.as_dict()))
    assert document["not_in_these_figures"] == [vars(part) for part in found.parts]
    assert any(f"{sum(in_full):,} parameters" in note for note in found.notes)


def test_an_adapter_of_factors_alone_has_no_other_parts(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    assert other_parts(read_adapter(tmp_path)) == []
    assert describe_parts([]) == []


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(
    "lora",
    [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"lora_bias": True}],
)
def test_a_state_dict_saved_by_hand_reads_as_what_peft_saves(
    wrapper: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(**lora)
    model.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "adapter_model.safetensors")
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    named = {f"{wrapper}{name}": tensor for name, tensor in trained.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    found = read_adapter(tmp_path).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_adapter_name_is_read_and_peft_loads_what_is_resized(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    named = {name.replace(".weight", ".sql.weight"): each for name, each in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    resize(tmp_path, tmp_path / "out", rank=2)
    loaded = PeftModel.from_pretrained(make_model().unload(), tmp_path / "out")
    layer = loaded.base_model.model.model.layers[0].self_attn.q_proj
    assert bool(layer.lora_B["default"].weight.any())


def test_tensors_of_two_adapters_are_refused() -> None:
    tensors = {f"q.lora_A.{name}.weight": torch.ones(2, 2) for name in ("sql", "chat")}
    with pytest.raises(RequestError, match=r"\(sql, chat\); save one with save_pretrained"):
        plain_names(tensors)


def test_frozen_weights_in_a_whole_state_dict_are_named_as_such(tmp_path: Path) -> None:
    model = make_model(modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        tmp_path / "adapter_model.safetensors",
    )
    kinds = {part.layer: part.kind for part in inspect_adapter(tmp_path).parts}
    assert kinds["model.layers.0.self_attn.q_proj"] == BASE
