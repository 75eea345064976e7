"""Axolotl: the YAML file that ``axolotl train`` takes."""

from collections.abc import Mapping
from typing import Any

from rankwise.exports.data import layout_of, save_chats, save_messages, unknown_template
from rankwise.exports.recipe import TrainingSetup
from rankwise.exports.yaml_text import (
    adapter_only,
    data_source,
    gguf_base,
    origin,
    trains_causal_lms,
    without,
    yaml_text,
)
from rankwise.tasks.chat_formats import ALPACA, ALPACA_WITH_INPUT, MESSAGE_KEYS, DataLayout


def axolotl_config(setup: TrainingSetup) -> str:
    """Return ``axolotl.yaml``: fields of Axolotl's AxolotlInputConfig."""
    # EVA is nothing without the call that draws its values from the data.
    lacking = without(setup, "Axolotl", the_initialisation_eva=setup.init == "eva")
    if lacking is not None:
        return lacking
    four_bits = setup.quantization in ("nf4", "nf4-dq")
    adapter: dict[str, Any] = {
        "adapter": "qlora" if four_bits else "lora",
        "lora_r": setup.rank,
        "lora_alpha": int(setup.lora_alpha),
        "lora_dropout": 0.0,
    }
    if setup.named_targets is None:
        adapter["lora_target_linear"] = True
    else:
        adapter["lora_target_modules"] = setup.named_targets
    if setup.use_rslora:
        adapter["peft_use_rslora"] = True
    if setup.use_dora:
        adapter["peft_use_dora"] = True
    if setup.init != "default":
        adapter["peft_init_lora_weights"] = setup.init
    if setup.quantization == "int8":
        adapter["load_in_8bit"] = True
    if four_bits:  # without which Axolotl refuses the adapter
        adapter["load_in_4bit"] = True
        adapter["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": setup.quantization == "nf4-dq"}
    if not trains_causal_lms(setup):
        return yaml_text([*adapter_only(setup, "Axolotl"), *origin(setup)[:1]], [adapter])
    training: dict[str, Any] = {
        "learning_rate": setup.learning_rate,
        "num_epochs": setup.epochs,
        "micro_batch_size": setup.batch_size,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": setup.max_grad_norm,
        "lr_scheduler": "linear",
        "warmup_steps": setup.warmup_steps,
        "sequence_len": setup.max_length,
        "excess_length_strategy": "truncate",  # Axolotl would drop what is longer
        "sample_packing": False,
        "val_set_size": 0.0,
        "bf16": "auto",
        "seed": setup.seed,
        "output_dir": "adapter",
    }
    if setup.loraplus_ratio != 1.0:
        training["loraplus_lr_ratio"] = setup.loraplus_ratio
    dataset, notes = _dataset(setup)
    return yaml_text(
        ["axolotl train axolotl.yaml", *origin(setup), *gguf_base(setup, "Axolotl"), *notes],
        [
            {"base_model": setup.base_directory, **setup.remote_code},
            adapter,
            training,
            {"datasets": [dataset]},
        ],
    )


def _dataset(setup: TrainingSetup) -> tuple[dict[str, Any], list[str]]:
    """Return the data's settings, and what to know about them."""
    where, layout = (
        data_source(setup, {"path": setup.data, "ds_type": setup.data_kind}),
        layout_of(setup),
    )
    columns = layout.columns
    if layout.data_format == "messages":
        column = columns["messages"]
        if len(layout.keys) > 1:
            return {**where, **_chats(column)}, [save_messages(layout, "Axolotl", column)]
        return {**where, **_chats(column, layout)}, []
    if layout.data_format == "alpaca" and setup.chat_template:
        return {**where, **_chats("messages")}, [save_chats(layout, "Axolotl")]
    if layout.data_format == "alpaca":
        formats = {"format": ALPACA_WITH_INPUT, "no_input_format": ALPACA}
        return {
            **where,
            "type": _completions(columns, "instruction", "output") | formats,
        }, unknown_template(setup)
    if layout.data_format == "prompt-completion":
        return {**where, "type": _completions(columns, "prompt", "completion")}, []
    return {**where, "type": "completion", "field": columns["text"]}, []


def _chats(column: str, layout: DataLayout | None = None) -> dict[str, Any]:
    """Return settings for messages in a column, with the layout's names of keys and roles, or the usual ones."""
    settings: dict[str, Any] = {"type": "chat_template", "field_messages": column}
    if layout is not None and layout.keys != (MESSAGE_KEYS,):
        settings["message_property_mappings"] = dict(zip(MESSAGE_KEYS, layout.keys[0], strict=True))
    if layout is not None and layout.renames_roles:
        settings["roles"] = {role: list(names) for role, names in layout.roles.items()}
    return settings


def _completions(columns: Mapping[str, str], prompt: str, completion: str) -> dict[str, Any]:
    """Return a prompt of the file's own columns, to which nothing is added: not even a column ``system``."""
    named = {
        "field_instruction": columns[prompt],
        "field_output": columns[completion],
        "system_format": "",
    }
    more = {"field_input": columns["input"]} if "input" in columns else {}
    return {**named, **more, "format": "{instruction}", "no_input_format": "{instruction}"}
