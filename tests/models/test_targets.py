import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from rankwise.errors import RequestError
from rankwise.models.targets import check_ranks, find_targets, group_pattern, parse_targets
from rankwise.planning.estimates import adapter_params
from tests.tiny_models import PACKABLE

HEADS = ("classifier", "score", "pooler")


def tiny(model_type: str, **sizes: Any) -> torch.nn.Module:
    from transformers import AutoConfig

    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(model_type, num_labels=2, **sizes)
    )


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
        "bert",
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    "gpt2": lambda: tiny("gpt2", vocab_size=32, n_embd=16, n_layer=2, n_head=2),
    "llama": lambda: tiny("llama", **LLAMA),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [1, 8])
def test_targets_and_parameter_counts_match_peft(name: str, rank: int) -> None:
    model = MODELS[name]()
    saved = [head for head in HEADS if hasattr(model, head)]
    targets = find_targets(model, ["all-linear"], saved)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=rank, target_modules="all-linear", modules_to_save=saved
    )
    adapted = get_peft_model(model, config)
    prefix = "base_model.model."
    layers = {
        key.removeprefix(prefix)
        for key, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert set(targets) == layers
    lora = sum(value.numel() for key, value in adapted.named_parameters() if "lora_" in key)
    assert adapter_params(targets.values(), rank) == lora


def test_layer_names_match_as_in_peft() -> None:
    model = MODELS["llama"]()
    targets = find_targets(model, ["q_proj", "layers.1.mlp.up_proj"], ["score"])
    assert list(targets) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert targets["model.layers.1.mlp.up_proj"] == (16, 24)


def test_a_name_that_matches_nothing_is_refused_with_similar_names() -> None:
    with pytest.raises(
        RequestError, match=r"'q_prj' matches no linear layer.*did you mean 'q_proj'.*down_proj"
    ):
        find_targets(MODELS["llama"](), ["v_proj", "q_prj"], ["score"])


LAYERS_BY_GROUP: dict[str, tuple[str, str]] = {
    "bert": (
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense",
    ),
    "electra": (
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense",
    ),
    "distilbert": (
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
        "ffn.lin1 ffn.lin2",
    ),
    "modernbert": ("attn.Wqkv attn.Wo", "mlp.Wi mlp.Wo"),
    "gpt2": ("attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    "gpt_neox": (
        "attention.query_key_value attention.dense",
        "mlp.dense_h_to_4h mlp.dense_4h_to_h",
    ),
    "opt": ("self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj", "fc1 fc2"),
    "llama": (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj mlp.down_proj",
    ),
}


@pytest.mark.parametrize("name", LAYERS_BY_GROUP)
def test_groups_match_the_layers_of_each_architecture(name: str) -> None:
    from transformers import AutoConfig

    settings = {
        **PACKABLE[name],
        "vocab_size": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **settings))
    for group, leaves in zip(("attention", "mlp"), LAYERS_BY_GROUP[name], strict=True):
        found = find_targets(model, group, HEADS)
        blocks: dict[str, set[str]] = {}
        for layer in found:
            block, leaf = re.split(r"(?<=\.\d)\.", layer, maxsplit=1)
            blocks.setdefault(block, set()).add(leaf)
        assert len(blocks) == PACKABLE[name].get("num_hidden_layers", 2)
        assert set(map(frozenset, blocks.values())) == {frozenset(leaves.split())}
        adapted = get_peft_model(
            copy.deepcopy(model), LoraConfig(target_modules=group_pattern(model, group))
        )
        layers = {key for key, module in adapted.named_modules() if isinstance(module, LoraLayer)}
        assert layers == {f"base_model.model.{layer}" for layer in found}


def test_groups_and_regexes_that_match_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match=r"'attention' matches no linear layer.*0"):
        find_targets(torch.nn.Sequential(torch.nn.Linear(2, 2)), "attention", ())
    with pytest.raises(RequestError, match=r"'.*nothing' matches no linear layer.*q_proj"):
        find_targets(MODELS["llama"](), ".*nothing", ["score"])
    with pytest.raises(RequestError, match="did you mean 'attention'"):
        find_targets(MODELS["llama"](), ["atention"], ["score"])


def test_a_regex_matches_as_in_peft() -> None:
    assert list(find_targets(MODELS["llama"](), r".*\.1\..*(q|v)_proj", ["score"])) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]


def test_a_rank_above_the_smaller_side_of_a_layer_is_refused() -> None:
    targets = find_targets(MODELS["llama"](), ["all-linear"], ["score"])
    check_ranks([1, 8], targets)
    with pytest.raises(RequestError, match=r"rank 9 is larger.*at most 8.*k_proj \(16 -> 8\)"):
        check_ranks([8, 9], targets)


def test_a_rank_as_large_as_the_layer_trains_in_peft(tiny_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    targets = find_targets(model, ["all-linear"], ["classifier"])
    check_ranks([16], targets)
    get_peft_model(
        model, LoraConfig(r=16, target_modules=list(targets), task_type=TaskType.SEQ_CLS)
    )


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([" All-Linear "], "all-linear"),
        (["MLP"], "mlp"),
        (["query", "value"], ("query", "value")),
        (["query"], ("query",)),
        ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"),
    ],
)
def test_words_and_regexes_are_told_from_names(items: list[str], expected: object) -> None:
    assert parse_targets(items) == expected


@pytest.mark.parametrize(
    ("items", "words"), [(["query", "mlp"], "'mlp' stands alone"), (["q(v"], "regular expression")]
)
def test_wrong_targets_are_refused(items: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse_targets(items)
