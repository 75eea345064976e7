"""TRL: the YAML file for ``trl sft --config``."""

import re
from typing import Any

from rankwise.exports import yaml_text
from rankwise.exports.recipe import AdapterRecipe, Recipe
from rankwise.tasks.messages import MESSAGE_KEYS

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True},
}

TRL_EXTRAS = {"tools": "tools", "template options": "chat_template_kwargs"}
"""Parts of dialogues that TRL reads, and the one name that each column may have."""


def trl_config(recipe: Recipe) -> str:
    """Return ``trl.yaml``: fields of TRL's ModelConfig, SFTConfig and DatasetMixtureConfig."""
    missing = yaml_text.missing_settings(recipe, "trl sft", inits=("default",), loraplus=False)
    if missing is not None:
        return missing
    model = recipe.model
    adapter: dict[str, Any] = {
        "use_peft": True,
        "lora_r": recipe.adapter.rank,
        "lora_alpha": int(recipe.adapter.lora_alpha),
        "lora_dropout": recipe.adapter.dropout,
        "lora_target_modules": _targets(recipe.adapter),
        "use_rslora": recipe.adapter.use_rslora,
        "use_dora": recipe.adapter.use_dora,
    }
    if not model.is_causal_lm:
        return yaml_text.yaml_file(yaml_text.adapter_only_notes(recipe, "trl sft"), [adapter])
    training = {
        **recipe.optimizer.training_arguments,
        "gradient_checkpointing": recipe.optimizer.gradient_checkpointing,
        "max_length": recipe.data.max_length,
        "packing": False,
    }
    base = {"model_name_or_path": model.directory, **model.remote_code}
    base["dtype"] = recipe.optimizer.dtype
    data, data_notes = _data(recipe)
    notes = ["trl sft --config trl.yaml", *yaml_text.common_notes(recipe, "TRL"), *data_notes]
    sections = [base | QUANTIZATIONS[model.quantization], adapter, training, data]
    return yaml_text.yaml_file(notes, sections)


def _targets(adapter: AdapterRecipe) -> list[str]:
    """Return the targets. TRL turns a single one into a text, which PEFT reads as a regex."""
    if adapter.targets_all:
        return ["all-linear"]
    if len(adapter.target_modules) == 1:
        return [rf"(.*\.)?{re.escape(adapter.target_modules[0])}"]
    return list(adapter.target_modules)


def _data(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the data, and notes on them.

    They name the columns to read: a column ``prompt`` next to messages would mislead TRL.
    """
    layout = recipe.layout
    files = {"path": recipe.data.file_kind, "data_files": recipe.data.source, "split": "train"}
    source = yaml_text.data_source(recipe, files)

    def read(*columns: str) -> dict[str, Any]:
        return {"datasets": [{**source, "columns": list(columns)}]}

    reads = [part for part, column in layout.extras.items() if TRL_EXTRAS.get(part) == column]
    extras = [TRL_EXTRAS[part] for part in reads]
    unread = yaml_text.unread_notes(layout, "TRL", reads)
    chats = {**read("messages", *extras), "assistant_only_loss": True}
    completions = read("prompt", "completion", *extras)
    is_plain = layout.keys == (MESSAGE_KEYS,) and not layout.renames_roles and not layout.as_text
    if layout.data_format == "messages":
        # TRL rewrites ShareGPT's keys in a column conversations, but not with assistant_only_loss.
        if layout.columns["messages"] == "messages" and is_plain:
            return chats, [*unread, *_mark_notes(recipe)]
        return chats, [
            yaml_text.save_messages_note(layout, "TRL", "messages"),
            *unread,
            *_mark_notes(recipe),
        ]
    is_chat = layout.data_format == "alpaca" or layout.is_chat
    if is_chat and recipe.data.chat_template:
        notes = [yaml_text.save_chats_note(layout, "TRL"), *unread, *_mark_notes(recipe)]
        return chats, notes
    columns = yaml_text.quoted_columns(layout)
    if layout.data_format == "alpaca":
        return completions, [
            f"TRL needs columns prompt and completion. First save {columns} that way: the prompt "
            "is the text before the answer in Stanford Alpaca's prompt, which rankwise trained on "
            "and axolotl.yaml holds in full.",
            *unread,
        ]
    marks = []
    if layout.data_format == "chats":
        completions, marks = {**completions, "assistant_only_loss": True}, _mark_notes(recipe)
    if layout.data_format == "chats" and not is_plain:
        return completions, [
            f"TRL needs columns prompt and completion. First save {columns} that way, as lists of "
            "messages with the keys role and content, and roles such as user and assistant.",
            *unread,
            *marks,
        ]
    if layout.data_format in ("prompt-completion", "chats"):
        if (layout.columns["prompt"], layout.columns["completion"]) == ("prompt", "completion"):
            return completions, [*unread, *marks]
        rename = f"TRL needs columns prompt and completion: first rename {columns}."
        return completions, [rename, *unread, *marks]
    text = layout.columns["text"]
    return {**read(text), "dataset_text_field": text}, []


def _mark_notes(recipe: Recipe) -> list[str]:
    """Return notes on how to train on answers alone if the chat template does not mark them."""
    if recipe.data.answers_marked:
        return []
    return [
        "With assistant_only_loss TRL trains on the assistant's words only, as rankwise did. It "
        "refuses chat templates that it does not know and that do not mark those words with "
        "{% generation %}. This tokenizer's template has no marks. If TRL reports that the "
        "template is not training-compatible, copy it, put {% generation %} and "
        "{% endgeneration %} around the assistant's words and the token that ends them, and set "
        "chat_template_path here to that file, for example marked.jinja.",
        "Without assistant_only_loss TRL would also train on the questions. If each dialogue has "
        "one answer, columns prompt and completion (lists of messages) need no marks, but TRL then "
        "also trains on the blanks that a template writes after an answer.",
    ]
