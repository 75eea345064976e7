"""Axolotl: the YAML file for ``axolotl train``."""

from collections.abc import Mapping
from typing import Any

from rankwise.engine.config import INITS
from rankwise.engine.schedule import OPTIMIZERS, SCHEDULERS
from rankwise.exports import yaml_text
from rankwise.exports.recipe import Recipe
from rankwise.tasks.chat_formats import DataLayout
from rankwise.tasks.dialogues import ALPACA, ALPACA_WITH_INPUT
from rankwise.tasks.messages import MESSAGE_KEYS

AXOLOTL_INITS = frozenset(INITS) - {"eva"}  # it lacks the call that draws EVA's values from data


def axolotl_config(recipe: Recipe) -> str:
    """Return ``axolotl.yaml``: fields of Axolotl's AxolotlInputConfig."""
    missing = yaml_text.missing_settings(recipe, "Axolotl", inits=AXOLOTL_INITS)
    if missing is not None:
        return missing
    adapter = _adapter(recipe)
    if not recipe.model.is_causal_lm:
        return yaml_text.yaml_file(yaml_text.adapter_only_notes(recipe, "Axolotl"), [adapter])
    base = {"base_model": recipe.model.directory, **recipe.model.remote_code}
    dataset, data_notes = _dataset(recipe)
    notes = ["axolotl train axolotl.yaml", *yaml_text.common_notes(recipe, "Axolotl"), *data_notes]
    return yaml_text.yaml_file(notes, [base, adapter, _training(recipe), {"datasets": [dataset]}])


def _adapter(recipe: Recipe) -> dict[str, Any]:
    adapter, quantization = recipe.adapter, recipe.model.quantization
    in_4_bits = quantization in ("nf4", "nf4-dq")
    settings: dict[str, Any] = {
        "adapter": "qlora" if in_4_bits else "lora",
        "lora_r": adapter.rank,
        "lora_alpha": int(adapter.lora_alpha),
        "lora_dropout": adapter.dropout,
    }
    if adapter.named_targets is None:
        settings["lora_target_linear"] = True
    else:
        settings["lora_target_modules"] = adapter.named_targets
    if adapter.use_rslora:
        settings["peft_use_rslora"] = True
    if adapter.use_dora:
        settings["peft_use_dora"] = True
    if adapter.init != "default":
        settings["peft_init_lora_weights"] = adapter.init
    if quantization == "int8":
        settings["load_in_8bit"] = True
    if in_4_bits:  # Axolotl refuses qlora without it
        settings["load_in_4bit"] = True
        settings["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": quantization == "nf4-dq"}
    return settings


def _training(recipe: Recipe) -> dict[str, Any]:
    optimizer = recipe.optimizer
    settings: dict[str, Any] = {
        "learning_rate": optimizer.learning_rate,
        "num_epochs": optimizer.epochs,
        **optimizer.step_limit,
        "micro_batch_size": optimizer.micro_batch_size,
        "gradient_accumulation_steps": optimizer.accumulated_batches,
        "optimizer": OPTIMIZERS[optimizer.optimizer],
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "lr_scheduler": SCHEDULERS[optimizer.lr_scheduler],
        "warmup_steps": optimizer.warmup_steps,
        "sequence_len": recipe.data.max_length,
        "excess_length_strategy": "truncate",  # by default Axolotl drops long examples
        "sample_packing": False,
        "val_set_size": 0.0,
        "bf16": optimizer.precision == "bf16",
        "fp16": optimizer.precision == "fp16",
        "gradient_checkpointing": optimizer.gradient_checkpointing,
        "seed": optimizer.seed,
        "output_dir": "adapter",
    }
    if optimizer.loraplus_ratio != 1.0:
        settings["loraplus_lr_ratio"] = optimizer.loraplus_ratio
    return settings


def _dataset(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of the data, and notes on them."""
    layout, columns = recipe.layout, recipe.layout.columns
    files = {"path": recipe.data.source, "ds_type": recipe.data.file_kind}
    settings: dict[str, Any] = {"type": "completion", "field": columns.get("text")}
    notes = []
    if layout.data_format == "messages" and len(layout.keys) == 1:
        settings = _chats(columns["messages"], layout)
    elif layout.data_format == "chats":
        settings, notes = _chats("messages"), [yaml_text.save_joined_note(layout, "Axolotl")]
    elif layout.data_format == "messages":
        settings = _chats(columns["messages"])
        notes = [yaml_text.save_messages_note(layout, "Axolotl", columns["messages"])]
    elif recipe.data.chat_template and (layout.data_format == "alpaca" or layout.is_chat):
        settings, notes = _chats("messages"), [yaml_text.save_chats_note(layout, "Axolotl")]
    elif layout.data_format == "alpaca":
        formats = {"format": ALPACA_WITH_INPUT, "no_input_format": ALPACA}
        settings = {"type": _completions(columns, "instruction", "output") | formats}
    elif layout.data_format == "prompt-completion":
        settings = {"type": _completions(columns, "prompt", "completion")}
    extras, reads = layout.extras, []
    if settings["type"] == "chat_template":
        # Axolotl has no setting for the column of system messages.
        reads = ["tools", *(["system"] if extras.get("system") == "system" else [])]
        settings |= {"field_tools": extras["tools"]} if "tools" in extras else {}
    notes += yaml_text.unread_notes(layout, "Axolotl", reads)
    return {**yaml_text.data_source(recipe, files), **settings}, notes


def _chats(column: str, layout: DataLayout | None = None) -> dict[str, Any]:
    """Return settings for messages in a column, with the layout's names of keys and roles."""
    settings: dict[str, Any] = {"type": "chat_template", "field_messages": column}
    if layout is not None and layout.keys != (MESSAGE_KEYS,):
        settings["message_property_mappings"] = dict(zip(MESSAGE_KEYS, layout.keys[0], strict=True))
    if layout is not None and layout.renames_roles:
        settings["roles"] = {role: list(names) for role, names in layout.roles.items()}
    return settings


def _completions(columns: Mapping[str, str], prompt: str, completion: str) -> dict[str, Any]:
    """Return settings for prompts that Axolotl must not change, not even by a system prompt."""
    return {
        "field_instruction": columns[prompt],
        "field_output": columns[completion],
        "system_format": "",
        **({"field_input": columns["input"]} if "input" in columns else {}),
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    }
