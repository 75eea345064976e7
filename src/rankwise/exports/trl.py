"""TRL: the YAML file for ``trl sft --config``."""

import re
from typing import Any

from rankwise.exports.recipe import AdapterRecipe, Recipe
from rankwise.exports.yaml_text import (
    adapter_only_notes,
    data_source,
    gguf_notes,
    missing_settings,
    origin_notes,
    quoted_columns,
    save_chats_note,
    save_messages_note,
    yaml_text,
)
from rankwise.tasks.chat_formats import MESSAGE_KEYS

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True},
}


def trl_config(recipe: Recipe) -> str:
    """Return ``trl.yaml``: fields of TRL's ModelConfig, SFTConfig and DatasetMixtureConfig."""
    missing = missing_settings(recipe, "trl sft", inits=("default",), loraplus=False)
    if missing is not None:
        return missing
    model = recipe.model
    adapter: dict[str, Any] = {
        "use_peft": True,
        "lora_r": recipe.adapter.rank,
        "lora_alpha": int(recipe.adapter.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": _targets(recipe.adapter),
        "use_rslora": recipe.adapter.use_rslora,
        "use_dora": recipe.adapter.use_dora,
    }
    if not model.is_causal_lm:
        return yaml_text(adapter_only_notes(recipe, "trl sft"), [adapter])
    training = {
        **recipe.optimizer.training_arguments,
        "gradient_accumulation_steps": 1,
        "max_length": recipe.data.max_length,
        "packing": False,
    }
    data, notes = _data(recipe)
    base = {"model_name_or_path": model.directory, **model.remote_code}
    return yaml_text(
        ["trl sft --config trl.yaml", *origin_notes(recipe), *gguf_notes(recipe, "TRL"), *notes],
        [base | QUANTIZATIONS[model.quantization], adapter, training, data],
    )


def _targets(adapter: AdapterRecipe) -> list[str]:
    """Return the targets. TRL turns a single one into a text, which PEFT reads as a regex."""
    if adapter.targets_all:
        return ["all-linear"]
    if len(adapter.target_modules) == 1:
        return [rf"(.*\.)?{re.escape(adapter.target_modules[0])}"]
    return list(adapter.target_modules)


def _data(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the data, and notes on them.

    TRL recognises data by column names, and a column ``prompt`` beside messages misleads it. So the
    settings name the columns that it must read.
    """
    layout = recipe.layout
    files = {"path": recipe.data.file_kind, "data_files": recipe.data.source, "split": "train"}

    def read(*columns: str) -> dict[str, Any]:
        return {"datasets": [{**data_source(recipe, files), "columns": list(columns)}]}

    if layout.data_format == "messages":
        # TRL rewrites ShareGPT's keys in a column conversations, but not with assistant_only_loss.
        named = layout.columns["messages"] == "messages" and layout.keys == (MESSAGE_KEYS,)
        readable = named and not layout.renames_roles and not layout.as_text
        notes = [] if readable else [save_messages_note(layout, "TRL", "messages")]
        return {**read("messages"), "assistant_only_loss": True}, [*notes, *_mark_notes(recipe)]
    if layout.data_format == "alpaca" and recipe.data.chat_template:
        notes = [save_chats_note(layout, "TRL"), *_mark_notes(recipe)]
        return {**read("messages"), "assistant_only_loss": True}, notes
    if layout.data_format == "alpaca":
        note = (
            "TRL needs columns prompt and completion. First save "
            f"{quoted_columns(layout)} that way: the prompt is the text before the answer in "
            "Stanford Alpaca's prompt, which rankwise trained on and axolotl.yaml holds in full."
        )
        return read("prompt", "completion"), [note]
    if layout.data_format == "prompt-completion":
        named = tuple(layout.columns.values()) == ("prompt", "completion")
        note = f"TRL needs columns prompt and completion: first rename {quoted_columns(layout)}."
        return read("prompt", "completion"), [] if named else [note]
    column = layout.columns["text"]
    return {**read(column), "dataset_text_field": column}, []


def _mark_notes(recipe: Recipe) -> list[str]:
    """Return notes on how to train on answers alone if the chat template does not mark them."""
    if recipe.data.answers_marked:
        return []
    return [
        "With assistant_only_loss TRL trains on the assistant's words only, as rankwise did. It "
        "refuses chat templates that neither mark those words with {% generation %} nor are among "
        "the ones it knows, and this tokenizer's template has no marks. If TRL reports that the "
        "template is not training-compatible, copy it, put {% generation %} and "
        "{% endgeneration %} around the assistant's words and the token that ends them, and set "
        "chat_template_path here to that file, for example marked.jinja.",
        "Without assistant_only_loss TRL would train on the questions as well. If each dialogue "
        "has one answer, columns prompt and completion (each a list of messages) need neither this "
        "setting nor marks, but TRL then also trains on the blanks that a template writes after an "
        "answer.",
    ]
