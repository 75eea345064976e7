"""Recipes to export: results that a sweep of a causal language model may end with."""

from dataclasses import fields, replace
from typing import Any

from rankwise.exports.recipe import (
    AdapterRecipe,
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
)
from rankwise.tasks.chat_formats import DataLayout

FIELDS = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
}


def usual_layout(data_format: str) -> DataLayout:
    """Return the layout of data with the usual column names."""
    return DataLayout(data_format, {name: name for name in FIELDS[data_format]})


PLAIN: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "name": "org/model",
    "trust_remote_code": False,
    "quantization": "none",
    "rank": 8,
    "truncate_to": None,
    "lora_alpha": 16,
    "dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "init": "default",
    "target_modules": "all-linear",
    "conv1d_names": (),
    "modules_to_save": (),
    "healing": None,
    "learning_rate": 5e-05,
    "loraplus_ratio": 1.0,
    "epochs": 2,
    "max_steps": None,
    "batch_size": 4,
    "micro_batch_size": 4,
    "steps": 100,
    "lr_scheduler": "linear",
    "warmup_ratio": 0.3,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optimizer": "adamw",
    "precision": "fp32",
    "gradient_checkpointing": False,
    "seed": 1,
    "source": "/data/train.jsonl",
    "max_length": 256,
    "train_examples": 200,
    "held_out_examples": 0,
    "test_examples": 0,
    "limited": False,
    "layout": usual_layout("messages"),
    "chat_template": True,
    "answers_marked": True,
}


def make_recipe(**changes: Any) -> Recipe:
    """Return the plain recipe with some fields changed, whichever part has them."""
    values = {**PLAIN, **changes}
    assert values.keys() == PLAIN.keys(), changes

    def part(kind: Any) -> Any:
        return kind(**{field.name: values[field.name] for field in fields(kind)})

    return Recipe(
        model=part(ModelRecipe),
        adapter=part(AdapterRecipe),
        optimizer=part(OptimizerRecipe),
        data=part(DataRecipe),
    )


def as_causal_lm(recipe: Recipe) -> Recipe:
    """Return a recipe for the same adapter on a causal language model."""
    return replace(recipe, model=replace(recipe.model, task_type="CAUSAL_LM"))


RECIPES = {
    "plain": make_recipe(),
    "rslora": make_recipe(
        use_rslora=True,
        target_modules=("q_proj", "v_proj"),
        layout=usual_layout("alpaca"),
        chat_template=False,
    ),
    "dora": make_recipe(
        use_dora=True, layout=usual_layout("prompt-completion"), source="/data/train.parquet"
    ),
    "nf4": make_recipe(quantization="nf4", layout=usual_layout("text"), truncate_to=4),
    "nf4-dq": make_recipe(quantization="nf4-dq", init="pissa"),
    "int8": make_recipe(trust_remote_code=True, quantization="int8", loraplus_ratio=16.0),
    "gpu": make_recipe(
        precision="bf16",
        gradient_checkpointing=True,
        batch_size=16,
        micro_batch_size=4,
        max_steps=200,
        steps=200,
        lr_scheduler="cosine",
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=0.3,
        dropout=0.05,
        optimizer="adamw-8bit",
    ),
    "classification": make_recipe(
        task_type="SEQ_CLS", layout=None, modules_to_save=("classifier",)
    ),
}
