"""LLaMA-Factory: the YAML file for ``llamafactory-cli train``, and its description of the data."""

import json
from typing import Any

from rankwise.errors import some
from rankwise.exports.recipe import Recipe
from rankwise.exports.yaml_text import (
    adapter_only_notes,
    gguf_notes,
    missing_settings,
    origin_notes,
    save_messages_note,
    yaml_text,
)
from rankwise.tasks.chat_formats import MESSAGE_KEYS, DataLayout

DATASET = "sweep_data"
ROLES = ("user", "assistant", "system")


def llama_factory_config(recipe: Recipe) -> str:
    """Return ``llama_factory.yaml``: fields of LLaMA-Factory's argument classes."""
    missing = missing_settings(recipe, "LLaMA-Factory", inits=("default", "pissa"))
    if missing is not None:
        return missing
    if not recipe.model.is_causal_lm:
        return yaml_text(adapter_only_notes(recipe, "LLaMA-Factory"), [_adapter(recipe)])
    template, template_notes = _template(recipe)
    data = {"dataset": DATASET, "dataset_dir": ".", **template}
    notes = [
        "llamafactory-cli train llama_factory.yaml",
        "Run it in this directory: dataset_info.json describes the data.",
        *origin_notes(recipe),
        *gguf_notes(recipe, "LLaMA-Factory"),
        *template_notes,
        *_training_notes(recipe),
    ]
    return yaml_text(notes, [_model(recipe), _adapter(recipe), _training(recipe), data])


def dataset_info(recipe: Recipe) -> str:
    """Return ``dataset_info.json``, which tells LLaMA-Factory where the data and columns are."""
    layout, columns = recipe.layout, recipe.layout.columns
    source: dict[str, Any] = {"file_name": recipe.data.source}
    if recipe.data.hub_parts is not None:
        name, config, split = recipe.data.hub_parts
        subset = {} if config is None else {"subset": config}
        source = {"hf_hub_url": name, **subset, "split": split}
    if layout.data_format == "messages":
        description = _describe_messages(layout)
    elif layout.data_format == "alpaca":
        names = {"prompt": "instruction", "query": "input", "response": "output"}
        present = {theirs: columns[ours] for theirs, ours in names.items() if ours in columns}
        description = {"columns": present}
    elif layout.data_format == "prompt-completion":
        description = {"columns": {"prompt": columns["prompt"], "response": columns["completion"]}}
    else:
        description = {"columns": {"prompt": columns["text"]}}
    return json.dumps({DATASET: source | description}, indent=2) + "\n"


def _describe_messages(layout: DataLayout) -> dict[str, Any]:
    readable = _reads_messages(layout)  # else the file gets the usual names when it is rewritten
    role, content = layout.keys[0] if readable else MESSAGE_KEYS
    names = layout.roles if readable else {}
    tags = {f"{who}_tag": names.get(who, (who,))[0] for who in ROLES}
    return {
        "formatting": "sharegpt",
        "columns": {"messages": layout.columns["messages"]},
        "tags": {"role_tag": role, "content_tag": content, **tags},
    }


def _reads_messages(layout: DataLayout) -> bool:
    """Whether messages are lists with one pair of keys and one name for each role."""
    one_name_each = all(len(names) == 1 for names in layout.roles.values())
    return not layout.as_text and len(layout.keys) == 1 and one_name_each


def _model(recipe: Recipe) -> dict[str, Any]:
    quantization = recipe.model.quantization
    settings: dict[str, Any] = {
        "model_name_or_path": recipe.model.directory,
        **recipe.model.remote_code,
    }
    if quantization == "int8":
        settings |= {"quantization_method": "bnb", "quantization_bit": 8}
    elif quantization != "none":
        settings |= {
            "quantization_method": "bnb",
            "quantization_bit": 4,
            "quantization_type": "nf4",
            "double_quantization": quantization == "nf4-dq",
        }
    return settings


def _adapter(recipe: Recipe) -> dict[str, Any]:
    adapter = recipe.adapter
    settings: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": adapter.rank,
        "lora_alpha": int(adapter.lora_alpha),
        "lora_dropout": 0.0,
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
        "gradient_accumulation_steps": 1,
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
    if (recipe.data.source or "").endswith(".ndjson"):
        notes.append(
            "LLaMA-Factory does not read files that end in .ndjson: rename the file to .jsonl, "
            "also in dataset_info.json."
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
    if layout.data_format == "messages":
        notes = []
        if not _reads_messages(layout):
            notes.append(save_messages_note(layout, "LLaMA-Factory", columns["messages"]))
        others = [role for role in layout.roles if role not in ROLES]
        if others:
            notes.append(
                f"LLaMA-Factory leaves out dialogues with roles other than {', '.join(ROLES)}; "
                f"these data have {some(others)}."
            )
        return {}, notes
    if layout.data_format == "prompt-completion":
        return {"template": "empty"}, [
            "LLaMA-Factory's template 'empty' writes prompts and completions as they are, without "
            "the end-of-sequence token that rankwise trained on: append it to each text in "
            f"{columns['completion']!r}."
        ]
    if layout.data_format == "text":
        return {}, []
    notes = []
    if "input" in columns:
        heading = "Stanford Alpaca's heading for inputs"
        notes.append(
            f"LLaMA-Factory puts a line break between {columns['instruction']!r} and "
            f"{columns['input']!r}; rankwise put "
            f"{'a blank line' if recipe.data.chat_template else heading}."
        )
    return {} if recipe.data.chat_template else {"template": "alpaca"}, notes
