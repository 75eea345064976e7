"""``trl.yaml``, read and trained by TRL itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.exports import export_files
from tests.exports.data_files import CASES, COUNT, needs_changes, swept_file, tokenizer_for
from tests.exports.recipes import RECIPES, make_recipe
from tests.exports.tools import comment_of, parse_with_trl
from tests.tasks.test_sft import CHATML, MARKED
from tests.tiny_models import TINY_GROUPED


@pytest.mark.parametrize("name", ["plain", "rslora", "dora", "nf4", "gpu"])
def test_trl_parses_the_config(name: str, tmp_path: Path) -> None:
    from trl import get_peft_config

    recipe = RECIPES[name]
    _, training, model, data = parse_with_trl(export_files(recipe)["trl.yaml"], tmp_path)
    adapter = get_peft_config(model)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (
        recipe.adapter.rank,
        recipe.adapter.lora_alpha,
        recipe.adapter.dropout,
    )
    assert (adapter.use_rslora, adapter.use_dora) == (
        recipe.adapter.use_rslora,
        recipe.adapter.use_dora,
    )
    expected = "all-linear" if recipe.adapter.targets_all else set(recipe.adapter.target_modules)
    assert adapter.target_modules == expected
    assert training.learning_rate == recipe.optimizer.learning_rate
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (
        recipe.optimizer.epochs,
        recipe.optimizer.micro_batch_size,
    )
    assert (training.lr_scheduler_type, training.get_warmup_steps(recipe.optimizer.steps)) == (
        "cosine" if name == "gpu" else "linear",
        recipe.optimizer.warmup_steps,
    )
    assert training.max_length == recipe.data.max_length
    assert model.model_name_or_path == "org/model"
    assert model.load_in_4bit == (name == "nf4")
    assert model.dtype == ("bfloat16" if name == "gpu" else "float32")
    assert data.datasets[0].data_files == recipe.data.source
    assert data.datasets[0].path == ("parquet" if name == "dora" else "json")


def test_trl_gets_the_settings_of_training(tmp_path: Path) -> None:
    text = export_files(RECIPES["gpu"])["trl.yaml"]
    assert yaml.safe_load(text)["bf16"] is True
    _, training, *_ = parse_with_trl(text, tmp_path)
    assert (training.gradient_accumulation_steps, training.max_steps) == (4, 200)
    assert (training.weight_decay, training.max_grad_norm) == (0.01, 0.3)
    assert training.optim == "adamw_bnb_8bit"
    assert (training.gradient_checkpointing, training.fp16) == (True, False)
    # TRL's own defaults are bf16 and checkpointing.
    plain = yaml.safe_load(export_files(RECIPES["plain"])["trl.yaml"])
    assert (plain["bf16"], plain["gradient_checkpointing"]) == (False, False)


@pytest.mark.parametrize(
    "target",
    ["q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"],
    ids=lambda name: name,
)
def test_trl_adapts_the_layers_of_a_single_target(target: str, tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_peft_config

    def adapted(config: LoraConfig) -> set[str]:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **TINY_GROUPED, vocab_size=8)
        )
        inject_adapter_in_model(config, model)
        return {
            name.removesuffix(".lora_A")
            for name, _ in model.named_modules()
            if name.endswith(".lora_A")
        }

    text = export_files(make_recipe(target_modules=(target,)))["trl.yaml"]
    _, _, model, _ = parse_with_trl(text, tmp_path)
    expected = adapted(LoraConfig(target_modules=[target]))
    assert expected
    assert adapted(get_peft_config(model)) == expected


def trained_with_trl(text: str, tokenizer: Any, tmp_path: Path) -> list[dict[str, Any]]:
    """Return the examples that ``trl sft --config`` trains on."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer, get_dataset

    _, training, _, data = parse_with_trl(text, tmp_path, "--output_dir", str(tmp_path / "adapter"))
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    training.report_to = []
    trainer = SFTTrainer(
        model, training, train_dataset=get_dataset(data)["train"], processing_class=tokenizer
    )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]


READ_BY_TRL = [
    ("messages beside a prompt", True),
    ("prompts and completions of messages", True),
    ("prompts", True),
    ("prompts", False),
    ("texts", True),
    ("texts", False),
]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), READ_BY_TRL)
def test_trl_trains_on_the_same_tokens(name: str, template: bool, tmp_path: Path) -> None:
    recipe, rows = swept_file(name, tmp_path, template=template)
    text = export_files(recipe)["trl.yaml"]
    assert not needs_changes(text)
    trained = trained_with_trl(text, tokenizer_for(template), tmp_path)
    assert len(trained) == COUNT
    for row in rows:
        theirs, ours = trained[row["row"]], row["labels"]
        assert theirs["input_ids"] == row["input_ids"]
        # No model learns the first token, which nothing comes before.
        assert theirs["labels"][1:] == ours[1:]


@pytest.mark.usefixtures("own_cache")
def test_trl_refuses_a_template_without_marks_until_it_gets_them(tmp_path: Path) -> None:
    """With the marks that the comment describes, TRL trains on the same tokens as rankwise."""
    recipe, rows = swept_file("messages beside a prompt", tmp_path, template=True)
    unmarked = replace(recipe, data=replace(recipe.data, answers_marked=False))
    text, tokenizer = export_files(unmarked)["trl.yaml"], tokenizer_for(True)
    assert "not training-compatible" not in export_files(recipe)["trl.yaml"]
    assert yaml.safe_load(text) == yaml.safe_load(export_files(recipe)["trl.yaml"])
    note = comment_of(text)
    assert "put {% generation %} and {% endgeneration %} around the assistant's words" in note
    assert "set chat_template_path here to that file" in note

    tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match="not training-compatible"):
        trained_with_trl(text, tokenizer, tmp_path)
    (tmp_path / "marked.jinja").write_text(MARKED)
    trained = trained_with_trl(
        f"{text}chat_template_path: {tmp_path / 'marked.jinja'}\n", tokenizer, tmp_path
    )
    assert [trained[row["row"]]["labels"] for row in rows] == [row["labels"] for row in rows]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("name", "template"),
    [case for case in CASES if case not in READ_BY_TRL],
)
def test_data_that_trl_cannot_read_are_named_in_a_comment(
    name: str, template: bool, tmp_path: Path
) -> None:
    from trl import get_dataset

    recipe, _ = swept_file(name, tmp_path, template=template)
    text = export_files(recipe)["trl.yaml"]
    assert needs_changes(text)
    *_, data = parse_with_trl(text, tmp_path)
    for part, column in recipe.layout.columns.items():
        assert repr(column) in comment_of(text) or part == column == "tools"  # which TRL reads
    if recipe.layout.columns.get("messages") != "messages":
        with pytest.raises(ValueError, match="not in the dataset"):
            get_dataset(data)
