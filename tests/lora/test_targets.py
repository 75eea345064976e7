from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from rankwise.errors import RequestError
from rankwise.lora.params import adapter_params
from rankwise.lora.targets import check_ranks, find_targets

HEADS = ("classifier", "score", "pooler")


def tiny(model_type: str, **sizes: Any) -> torch.nn.Module:
    from transformers import AutoConfig

    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, num_labels=2, **sizes))


LLAMA = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "bert": lambda: tiny(
        "bert", vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    ),
    "gpt2": lambda: tiny("gpt2", vocab_size=32, n_embd=16, n_layer=2, n_head=2),
    "llama": lambda: tiny("llama", **LLAMA),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [1, 8])
def test_targets_and_counts_are_peft_s(name: str, rank: int) -> None:
    model = MODELS[name]()
    saved = [head for head in HEADS if hasattr(model, head)]
    targets = find_targets(model, ["all-linear"], saved)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, target_modules="all-linear", modules_to_save=saved)
    adapted = get_peft_model(model, config)
    prefix = "base_model.model."
    layers = {key.removeprefix(prefix) for key, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    assert set(targets) == layers
    lora = sum(value.numel() for key, value in adapted.named_parameters() if "lora_" in key)
    assert adapter_params(targets.values(), rank) == lora


def test_names_match_as_in_peft() -> None:
    model = MODELS["llama"]()
    targets = find_targets(model, ["q_proj", "layers.1.mlp.up_proj"], ["score"])
    assert list(targets) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert targets["model.layers.1.mlp.up_proj"] == (16, 24)


def test_a_name_that_matches_nothing_names_close_ones() -> None:
    with pytest.raises(RequestError, match=r"'q_prj' matches no linear layer.*did you mean 'q_proj'.*down_proj"):
        find_targets(MODELS["llama"](), ["v_proj", "q_prj"], ["score"])


def test_ranks_above_the_smaller_side_name_the_layer() -> None:
    targets = find_targets(MODELS["llama"](), ["all-linear"], ["score"])
    check_ranks([1, 8], targets)
    with pytest.raises(RequestError, match=r"rank 9 is larger.*at most 8.*k_proj \(16 -> 8\)"):
        check_ranks([8, 9], targets)


def test_a_rank_as_large_as_the_layer_trains_in_peft(tiny_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    targets = find_targets(model, ["all-linear"], ["classifier"])
    check_ranks([16], targets)
    get_peft_model(model, LoraConfig(r=16, target_modules=list(targets), task_type=TaskType.SEQ_CLS))
