"""``axolotl.yaml`` against Axolotl's schema, and its own parser where that is installed."""

from pathlib import Path

import pytest
import yaml

from rankwise.exports import export_files
from tests.exports.data_files import CASES, needs_changes, swept_file, tokenizer_for
from tests.exports.recipes import PLAIN, RECIPES, make_recipe
from tests.exports.tools import SCHEMAS, assert_known, texts_of


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_is_in_the_schema_with_its_type(name: str) -> None:
    settings = yaml.safe_load(export_files(RECIPES[name])["axolotl.yaml"])
    assert_known(settings, SCHEMAS["axolotl"]["fields"])


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize(
    ("kind", "adapter", "key"), [("int8", "lora", "load_in_8bit"), ("nf4", "qlora", "load_in_4bit")]
)
def test_the_quantisation_is_set_for_every_task(
    kind: str, adapter: str, key: str, task: str
) -> None:
    recipe = make_recipe(
        quantization=kind, task_type=task, layout=None if task == "SEQ_CLS" else PLAIN["layout"]
    )
    settings = yaml.safe_load(export_files(recipe)["axolotl.yaml"])
    assert settings["adapter"] == adapter  # Axolotl requires qlora with load_in_4bit
    assert {name for name in settings if name.startswith("load_in")} == {key}


def test_the_settings_of_training_have_axolotl_s_names() -> None:
    settings = yaml.safe_load(export_files(RECIPES["gpu"])["axolotl.yaml"])
    expected = {
        "micro_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 200, "bf16": True,
        "fp16": False, "gradient_checkpointing": True, "optimizer": "adamw_bnb_8bit",
        "lr_scheduler": "cosine", "warmup_steps": 20, "weight_decay": 0.01, "max_grad_norm": 0.3,
        "lora_dropout": 0.05,
    }  # fmt: skip
    assert settings.items() >= expected.items()
    constant = export_files(make_recipe(lr_scheduler="constant"))["axolotl.yaml"]
    assert yaml.safe_load(constant)["lr_scheduler"] == "constant_with_warmup"


TRAINED = [name for name, recipe in RECIPES.items() if recipe.model.task_type == "CAUSAL_LM"]


@pytest.mark.parametrize("name", TRAINED)
def test_axolotl_validates_the_config(name: str) -> None:
    pytest.importorskip("axolotl", reason="pins another torch; see tests/exports/read_schemas.py")
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    recipe = RECIPES[name]
    config = yaml.safe_load(export_files(recipe)["axolotl.yaml"])
    valid = validate_config(DictDefault(config))
    assert (valid.lora_r, valid.lora_alpha, valid.learning_rate) == (
        recipe.adapter.rank,
        recipe.adapter.lora_alpha,
        recipe.optimizer.learning_rate,
    )
    assert (valid.warmup_steps, valid.lr_scheduler) == (
        recipe.optimizer.warmup_steps,
        recipe.optimizer.lr_scheduler,
    )
    assert (valid.weight_decay, valid.max_grad_norm, valid.lora_dropout) == (
        recipe.optimizer.weight_decay,
        recipe.optimizer.max_grad_norm,
        recipe.adapter.dropout,
    )
    assert valid.micro_batch_size * valid.gradient_accumulation_steps == recipe.optimizer.batch_size
    assert valid.max_steps == recipe.optimizer.max_steps
    assert (bool(valid.bf16), bool(valid.fp16)) == (recipe.optimizer.precision == "bf16", False)
    assert valid.excess_length_strategy == "truncate"
    assert bool(valid.lora_target_linear) == recipe.adapter.targets_all
    assert bool(valid.peft_use_rslora) == recipe.adapter.use_rslora
    assert bool(valid.load_in_4bit) == recipe.model.quantization.startswith("nf4")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), CASES)
def test_axolotl_trains_on_the_same_text(name: str, template: bool, tmp_path: Path) -> None:
    pytest.importorskip("axolotl", reason="pins another torch; see tests/exports/read_schemas.py")
    from axolotl.datasets import TokenizedPromptDataset
    from axolotl.prompt_strategies import load
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    recipe, rows = swept_file(name, tmp_path, template=template)
    text, tokenizer = export_files(recipe)["axolotl.yaml"], tokenizer_for(template)
    config = validate_config(DictDefault(yaml.safe_load(text)))
    (described,) = config.datasets
    data = load_dataset(described["ds_type"], data_files=described["path"], split="train")
    if needs_changes(text):
        known = (
            "two pairs of keys",
            "messages with weights",
            "prompts and completions of messages",
        )
        assert name in known or (name.startswith("alpaca") and template)
        return
    if isinstance(described["type"], str):
        strategy = load(described["type"], tokenizer, config, described)
    else:  # as its get_dataset_wrapper does, which imports all of Axolotl
        strategy = load("user_defined", tokenizer, config, described["type"].to_dict())
    made = TokenizedPromptDataset(strategy, data)
    theirs = [made[row["row"]] for row in rows]
    assert texts_of(tokenizer, theirs) == texts_of(tokenizer, rows)
