import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from rankwise.errors import RequestError
from rankwise.models.base_model import load_base
from rankwise.models.compat import quiet_libraries
from rankwise.planning.config import PlanConfig
from rankwise.planning.estimates import estimate_lora_params
from rankwise.planning.meta_model import load_meta_model
from rankwise.planning.params import (
    ParamCount,
    count_at_rank,
    lora_config,
)
from rankwise.planning.prepare import make_skeleton, prepare
from rankwise.tasks.losses import ClassificationObjective
from tests.tiny_models import ARCHITECTURES, real_model, request, save_tiny, write_config

PUBLISHED = json.loads((Path(__file__).parent / "published_params.json").read_text())["rows"]


def count(config: PlanConfig) -> ParamCount:
    meta = load_meta_model(config.model, torch.float32, task_type=config.task_type)
    skeleton = make_skeleton(meta, config)
    return count_at_rank(skeleton, config, config.ranks[0])


def count_by_peft(config: PlanConfig) -> Any:
    """Put the adapter on the whole model and let PEFT count."""
    meta = load_meta_model(config.model, torch.float32, task_type=config.task_type)
    with quiet_libraries():
        return get_peft_model(
            meta.model, lora_config(config, config.ranks[0], meta.task_type, meta.model)
        )


@pytest.mark.parametrize("row", PUBLISHED[:-1], ids=lambda row: f"{row['model']} r={row['rank']}")
def test_counts_equal_published_counts(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(row["config"]))
    config = PlanConfig(
        model=str(tmp_path),
        ranks=(row["rank"],),
        target_modules=row["target_modules"],
        use_dora=row.get("use_dora", False),
        task_type=row["task_type"],
    )
    params = count(prepare(config).config)
    assert params.trainable == row["trainable"]
    if row["all_params"] is not None:
        assert params.all == row["all_params"]


def test_gpt3_count_equals_that_of_the_lora_paper() -> None:
    row = PUBLISHED[-1]
    width, depth = row["config"]["n_embd"], row["config"]["n_layer"]
    assert estimate_lora_params(width, row["rank"], depth, modules_per_layer=2) == row["trainable"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_equal_those_of_peft_on_the_whole_model(name: str, tmp_path: Path) -> None:
    config = request(write_config(tmp_path, name))
    params, peft_model = count(config), count_by_peft(config)
    assert (params.trainable, params.all) == peft_model.get_nb_trainable_parameters()
    assert sum(params.layers.values()) == params.trainable


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"use_dora": True}),
        ("llama", {"target_modules": r".*\.layers\.[1-3]\..*(q|v)_proj"}),
        ("llama", {"target_modules": "q_proj,embed_tokens"}),
        (
            "llama",
            {
                "target_modules": "q_proj,v_proj",
                "rank_pattern": "v_proj=2,layers.4.self_attn.q_proj=16",
            },
        ),
        ("llama", {"modules_to_save": "embed_tokens,lm_head"}),
        ("llama", {"target_modules": "q_proj", "modules_to_save": "layers.2.mlp"}),
        ("qwen2", {"modules_to_save": "lm_head"}),
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only", "target_modules": "q_proj,o_proj"}),
        ("bert", {"bias": "all", "use_dora": True}),
        ("gpt2", {"target_modules": "c_attn,wte"}),
        ("mixtral", {"target_modules": "w1,w2,w3,q_proj"}),
        ("gemma2", {"target_modules": r".*\.layers\.\d*[02468]\..*q_proj"}),
        ("t5", {"target_modules": "q,v,wo"}),
        ("vit", {"modules_to_save": "classifier"}),
    ],
    ids=str,
)
def test_counts_equal_those_of_peft_for_every_setting(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = request(write_config(tmp_path, name), **settings)
    params = count(config)
    assert (params.trainable, params.all) == count_by_peft(config).get_nb_trainable_parameters()


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_counts_equal_what_a_sweep_trains(name: str, tmp_path: Path) -> None:
    from rankwise.engine.adapter_init import attach_adapter, saved_modules
    from rankwise.engine.trial import Trial

    base = load_base(
        str(save_tiny(name, tmp_path)), ClassificationObjective(("bad", "good")), "all-linear", [4]
    )
    trial = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=4.0, use_rslora=False)
    trained = {
        key.replace(".modules_to_save.default", "").removeprefix(
            "base_model.model."
        ): parameter.numel()
        for key, parameter in attach_adapter(base, trial, saved_modules(base)).named_parameters()
        if parameter.requires_grad
    }
    params = count(PlanConfig(model=str(tmp_path), ranks=(4,), task_type="SEQ_CLS"))
    assert params.trainable == sum(trained.values())
    for layer, size in params.layers.items():
        assert size == sum(size for key, size in trained.items() if key.startswith(f"{layer}."))


def test_head_of_a_token_classifier_gets_no_adapter(tmp_path: Path) -> None:
    layers = count(request(write_config(tmp_path, "bert"), task_type="TOKEN_CLS")).layers
    assert layers["classifier"] == (128 + 1) * 2
    assert len(layers) == 6 * 6 + 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("bert", {"use_dora": True}),
        ("llama", {"modules_to_save": "lm_head", "precision": "bf16"}),
        ("gpt2", {"bias": "all"}),
        ("llama", {"target_modules": "q_proj,embed_tokens"}),
    ],
    ids=str,
)
def test_adapter_file_has_the_predicted_size(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = request(write_config(tmp_path, name, num_hidden_layers=12, n_layer=12), **settings)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    meta = load_meta_model(config.model, dtype)
    skeleton = make_skeleton(meta, config)
    params = count_at_rank(skeleton, config, 8)
    with quiet_libraries():
        real_model(config, tmp_path, 8).save_pretrained(tmp_path / "saved")
    assert params.adapter_bytes == (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size


def test_layers_have_the_names_of_the_base_model(tmp_path: Path) -> None:
    config = request(
        write_config(tmp_path, "llama"), target_modules="q_proj", modules_to_save="lm_head"
    )
    layers = count(config).layers
    assert layers == {
        "lm_head": 128 * 1000,
        **{f"model.layers.{layer}.self_attn.q_proj": 8 * (128 + 128) for layer in range(6)},
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": "q_porj"}, ["q_porj", "did you mean 'q_proj'", "k_proj"]),
        ({"modules_to_save": "lm_haed"}, ["modules_to_save", "lm_haed", "did you mean 'lm_head'"]),
        ({"target_modules": r".*nothing\d"}, ["nothing"]),
        ({"target_modules": "mpl"}, ["mpl"]),
    ],
)
def test_targets_that_match_no_layer_are_refused(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(RequestError) as caught:
        count(request(write_config(tmp_path, "llama"), **settings))
    for word in words:
        assert word in str(caught.value)
