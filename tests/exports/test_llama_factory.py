"""``llama_factory.yaml`` against its schema, and its own parser where that is installed."""

import json
from pathlib import Path

import pytest
import yaml

from rankwise.exports import export_files
from tests.exports.data_files import CASES, needs_changes, swept_file, tokenizer_for
from tests.exports.recipes import RECIPES, make_recipe
from tests.exports.tools import SCHEMAS, allow_llama_factory, assert_known, comment_of, texts_of


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_is_in_the_schema_with_its_type(name: str) -> None:
    settings = yaml.safe_load(export_files(RECIPES[name])["llama_factory.yaml"])
    assert_known(settings, SCHEMAS["llamafactory"]["fields"])


def test_pissa_is_exact_and_converted_for_the_original_base() -> None:
    text = export_files(make_recipe(init="pissa"))["llama_factory.yaml"]
    settings = {
        name: value for name, value in yaml.safe_load(text).items() if name.startswith("pissa")
    }
    assert settings == {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True}
    assert_known(settings, SCHEMAS["llamafactory"]["fields"])
    assert "use the adapter in adapter/pissa_converted" in comment_of(text)
    assert "pissa" not in export_files(make_recipe())["llama_factory.yaml"]


def test_a_file_ending_that_llama_factory_does_not_read_is_noted() -> None:
    for ending, noted in ((".ndjson", True), (".jsonl", False)):
        text = export_files(make_recipe(source=f"/data/train{ending}"))["llama_factory.yaml"]
        assert ("does not read files that end in .ndjson" in comment_of(text)) == noted


def test_the_settings_of_training_have_llama_factory_s_names() -> None:
    text = export_files(RECIPES["gpu"])["llama_factory.yaml"]
    expected = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 200,
        "bf16": True, "fp16": False, "disable_gradient_checkpointing": False,
        "optim": "adamw_bnb_8bit", "lr_scheduler_type": "cosine", "warmup_steps": 20,
        "weight_decay": 0.01, "max_grad_norm": 0.3, "lora_dropout": 0.05,
    }  # fmt: skip
    assert yaml.safe_load(text).items() >= expected.items()
    assert "fp32" not in comment_of(text)
    plain = export_files(RECIPES["plain"])["llama_factory.yaml"]
    assert yaml.safe_load(plain)["disable_gradient_checkpointing"] is True
    assert "The sweep computed in fp32" in comment_of(plain)


NEED_CHANGES = (
    "messages as text",
    "messages with a system message and tools",
    "messages with weights",
    "prompts and completions of messages",
)
TRAINED = [name for name, recipe in RECIPES.items() if recipe.model.task_type == "CAUSAL_LM"]


@pytest.mark.parametrize("name", TRAINED)
def test_llama_factory_parses_the_config_and_finds_the_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_llama_factory(monkeypatch)
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams.parser import _parse_train_args

    recipe = RECIPES[name]
    files = export_files(recipe)
    config = yaml.safe_load(files["llama_factory.yaml"])
    on_cpu = {"use_cpu": True}  # bf16 is refused without a GPU
    model, data, training, finetuning, _ = _parse_train_args(config | on_cpu)
    assert (finetuning.lora_rank, finetuning.lora_alpha) == (
        recipe.adapter.rank,
        recipe.adapter.lora_alpha,
    )
    assert finetuning.lora_target == (
        ["all"] if recipe.adapter.targets_all else list(recipe.adapter.target_modules)
    )
    assert (training.learning_rate, training.warmup_steps) == (
        recipe.optimizer.learning_rate,
        recipe.optimizer.warmup_steps,
    )
    assert (training.weight_decay, training.max_grad_norm, finetuning.lora_dropout) == (
        recipe.optimizer.weight_decay,
        recipe.optimizer.max_grad_norm,
        recipe.adapter.dropout,
    )
    assert (
        training.per_device_train_batch_size * training.gradient_accumulation_steps
        == recipe.optimizer.batch_size
    )
    assert model.quantization_bit == {"none": None, "int8": 8}.get(recipe.model.quantization, 4)
    (tmp_path / "dataset_info.json").write_text(files["dataset_info.json"])
    (described,) = get_dataset_list(data.dataset, str(tmp_path))
    assert (described.load_from, described.dataset_name) == ("file", recipe.data.source)
    columns = (
        [described.messages]
        if described.formatting == "sharegpt"
        else [described.prompt, described.response]
    )
    expected = {
        "messages": ["messages"],
        "prompt-completion": ["prompt", "completion"],
        "alpaca": ["instruction", "output"],
        "text": ["text"],
    }[recipe.layout.data_format]
    assert columns[: len(expected)] == expected
    assert json.loads(files["dataset_info.json"]).keys() == {"sweep_data"}


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), CASES)
def test_llama_factory_trains_on_the_same_text(
    name: str, template: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_llama_factory(monkeypatch)
    from llamafactory.data.loader import get_dataset
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams.parser import get_train_args

    recipe, rows = swept_file(name, tmp_path, template=template)
    files, tokenizer = export_files(recipe), tokenizer_for(template)
    (tmp_path / "dataset_info.json").write_text(files["dataset_info.json"])
    config = yaml.safe_load(files["llama_factory.yaml"]) | {
        "dataset_dir": str(tmp_path),
        "use_cpu": True,
    }
    model, data, training, finetuning, _ = get_train_args(config)
    form = get_template_and_fix_tokenizer(tokenizer, data)
    if needs_changes(files["llama_factory.yaml"]):
        assert name in ("sharegpt, several names", "two pairs of keys", *NEED_CHANGES)
        return
    made = get_dataset(form, model, data, training, finetuning.stage, tokenizer)["train_dataset"]
    theirs = [{"labels": made[row["row"]]["input_ids"], **made[row["row"]]} for row in rows]
    expected = texts_of(tokenizer_for(template), rows)
    if recipe.layout.data_format == "prompt-completion":  # as the comment explains
        expected = [
            (whole.removesuffix("<|end|>"), labels.removesuffix("<|end|>"))
            for whole, labels in expected
        ]
    if name == "alpaca" and not template:
        heading = ",pairedwithaninputthatprovidesfurthercontext"
        expected = [
            (whole.replace(heading, "").replace("###Input:", ""), labels)
            for whole, labels in expected
        ]
    assert texts_of(tokenizer, theirs) == expected
