"""LLaMA-Factory: the YAML file for ``llamafactory-cli train``, and its description of the data."""

import json
from typing import Any

from rankwise.exports import yaml_text
from rankwise.exports.recipe import Recipe
from rankwise.tasks.chat_formats import DataLayout
from rankwise.tasks.messages import CALLS_AS_TEXT, MESSAGE_KEYS

TOOL = "LLaMA-Factory"
DATASET = "sweep_data"
ROLES = {
    **{"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag"},
    **{"tool": "observation_tag", "function_call": "function_tag"},
}
COLUMNS = {
    **{"instruction": "prompt", "input": "query", "output": "response"},
    **{"prompt": "prompt", "completion": "response", "text": "prompt"},
    **{"system": "system", "history": "history", "tools": "tools"},
}
EXTRAS = ("system", "history", "tools")


def llama_factory_config(recipe: Recipe) -> str:
    """Return ``llama_factory.yaml``: fields of LLaMA-Factory's argument classes."""
    missing = yaml_text.missing_settings(recipe, TOOL, inits=("default", "pissa"))
    if missing is not None:
        return missing
    adapter = _adapter(recipe)
    if not recipe.model.is_causal_lm:
        return yaml_text.yaml_file(yaml_text.adapter_only_notes(recipe, TOOL), [adapter])
    template, template_notes = _template(recipe)
    data = {"dataset": DATASET, "dataset_dir": ".", **template}
    notes = [
        "llamafactory-cli train llama_factory.yaml",
        "Run it in this directory: dataset_info.json describes the data.",
        *yaml_text.common_notes(recipe, TOOL),
        *template_notes,
        *_training_notes(recipe),
    ]
    return yaml_text.yaml_file(notes, [_model(recipe), adapter, _training(recipe), data])


def dataset_info(recipe: Recipe) -> str:
    """Return ``dataset_info.json``, LLaMA-Factory's description of the data."""
    layout, columns = recipe.layout, recipe.layout.columns
    source: dict[str, Any] = {"file_name": recipe.data.source}
    if recipe.data.hub_parts is not None:
        name, config, split = recipe.data.hub_parts
        subset = {} if config is None else {"subset": config}
        source = {"hf_hub_url": name, **subset, "split": split}
    if layout.data_format in ("messages", "chats"):
        description = _describe_messages(layout)
    else:
        present = {COLUMNS[name]: column for name, column in columns.items() if name in COLUMNS}
        description = {"columns": present}
    return json.dumps({DATASET: source | description}, indent=2) + "\n"


def _describe_messages(layout: DataLayout) -> dict[str, Any]:
    readable = _reads_messages(layout)  # else the file gets the usual names when it is rewritten
    role, content = layout.keys[0] if readable else MESSAGE_KEYS
    names = layout.roles if readable else {}
    always = ("user", "assistant", "system")
    shown = {who: tag for who, tag in ROLES.items() if who in always or who in names}
    tags = {tag: names.get(who, (who,))[0] for who, tag in shown.items()}
    extras = {part: column for part, column in layout.extras.items() if part in EXTRAS}
    return {
        "formatting": "sharegpt",
        "columns": {"messages": layout.columns.get("messages", "messages"), **extras},
        "tags": {"role_tag": role, "content_tag": content, **tags},
    }


def _reads_messages(layout: DataLayout) -> bool:
    """Whether messages are lists with one pair of keys and one name for each role."""
    if layout.data_format == "chats":
        return False
    one_name_each = all(len(names) == 1 for names in layout.roles.values())
    return not layout.as_text and len(layout.keys) == 1 and one_name_each


def _model(recipe: Recipe) -> dict[str, Any]:
    quantization = recipe.model.quantization
    settings = {"model_name_or_path": recipe.model.directory, **recipe.model.remote_code}
    if quantization == "none":
        return settings
    settings["quantization_method"] = "bnb"
    if quantization == "int8":
        return {**settings, "quantization_bit": 8}
    double = quantization == "nf4-dq"
    four_bits = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": double}
    return settings | four_bits


def _adapter(recipe: Recipe) -> dict[str, Any]:
    adapter = recipe.adapter
    settings: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": adapter.rank,
        "lora_alpha": int(adapter.lora_alpha),
        "lora_dropout": adapter.dropout,
        "lora_target": "all" if adapter.named_targets is None else ",".join(adapter.named_targets),
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }
    if adapter.init == "pissa":
        # Exact singular values, and conversion for the original base, as in the sweep.
        settings |= {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True}
    return settings


def _training(recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": _stage(recipe),
        "do_train": True,
        **recipe.optimizer.training_arguments,
        "disable_gradient_checkpointing": not recipe.optimizer.gradient_checkpointing,
        "cutoff_len": recipe.data.max_length,
        "packing": False,  # the default in stage pt is True
    }
    if recipe.optimizer.loraplus_ratio != 1.0:
        settings["loraplus_lr_ratio"] = recipe.optimizer.loraplus_ratio
    return settings


def _stage(recipe: Recipe) -> str:
    return "pt" if recipe.layout.data_format == "text" else "sft"


def _training_notes(recipe: Recipe) -> list[str]:
    notes = []
    if recipe.adapter.init == "pissa":
        directory = recipe.optimizer.training_arguments["output_dir"]
        notes.append(
            f"For the original base, use the adapter in {directory}/pissa_converted: the other one "
            "belongs to a base that PiSSA changed."
        )
    if recipe.optimizer.precision == "fp32":
        notes.append(
            f"The sweep computed in fp32. {TOOL} has no setting for that: it loads the base in the "
            "precision of its checkpoint."
        )
    if (recipe.data.source or "").endswith(".ndjson"):
        notes.append(
            f"{TOOL} does not read files that end in .ndjson: rename the file to .jsonl, also in "
            "dataset_info.json."
        )
    if _stage(recipe) == "sft":
        notes.append(
            "rankwise truncated long examples at the end. LLaMA-Factory shortens prompt and answer "
            "separately, so that more of the answer stays."
        )
    return notes


def _template(recipe: Recipe) -> tuple[dict[str, str], list[str]]:
    """Return the template, none for the tokenizer's chat template, and notes on the data."""
    layout, columns = recipe.layout, recipe.layout.columns
    if layout.data_format == "text":
        return {}, []
    unread = yaml_text.unread_notes(layout, TOOL, (*EXTRAS, CALLS_AS_TEXT))
    if "tools" in layout.extras:
        unread.append(
            f"{TOOL} writes tools and calls in the words of its own templates, and reads tools as "
            "JSON text: save those of your data so."
        )
    if layout.data_format == "prompt-completion" and layout.is_chat and recipe.data.chat_template:
        return {}, unread
    if layout.data_format == "prompt-completion":
        return {"template": "empty"}, [
            f"The template 'empty' of {TOOL} writes prompts and completions as they are, without "
            "the end-of-sequence token that rankwise trained on: append it to each text in "
            f"{columns['completion']!r}.",
            *unread,
        ]
    notes = unread
    if layout.data_format == "chats":
        return {}, [yaml_text.save_joined_note(layout, TOOL), *notes]
    if layout.data_format == "messages":
        if not _reads_messages(layout):
            notes.append(yaml_text.save_messages_note(layout, TOOL, columns["messages"]))
        return {}, notes
    if "input" in columns:
        chat, heading = "a blank line", "Stanford Alpaca's heading for inputs"
        notes.append(
            f"{TOOL} puts a line break between {columns['instruction']!r} and "
            f"{columns['input']!r}; rankwise put {chat if recipe.data.chat_template else heading}."
        )
    return {} if recipe.data.chat_template else {"template": "alpaca"}, notes
