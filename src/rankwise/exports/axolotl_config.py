"""Axolotl: the YAML file that ``axolotl train`` takes."""

from typing import Any

from rankwise.exports.setup import TrainingSetup
from rankwise.exports.text import adapter_only, data_source, origin, trains_causal_lms, without, yaml_text


def axolotl_config(setup: TrainingSetup) -> str:
    """Return ``axolotl.yaml``: fields of Axolotl's AxolotlInputConfig."""
    lacking = without(setup, "Axolotl")
    if lacking is not None:
        return lacking
    adapter: dict[str, Any] = {
        "adapter": "lora" if setup.quantization == "none" else "qlora",
        "lora_r": setup.rank,
        "lora_alpha": int(setup.lora_alpha),
        "lora_dropout": 0.0,
    }
    if setup.everywhere:
        adapter["lora_target_linear"] = True
    else:
        adapter["lora_target_modules"] = list(setup.target_modules)
    if setup.use_rslora:
        adapter["peft_use_rslora"] = True
    if setup.use_dora:
        adapter["peft_use_dora"] = True
    if setup.init != "default":
        adapter["peft_init_lora_weights"] = setup.init
    if not trains_causal_lms(setup):
        return yaml_text([*adapter_only(setup, "Axolotl"), *origin(setup)[:1]], [adapter])
    if setup.quantization == "int8":
        adapter |= {"adapter": "lora", "load_in_8bit": True}
    elif setup.quantization != "none":
        adapter |= {"load_in_4bit": True}
        adapter |= {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": setup.quantization == "nf4-dq"}}
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
        "sample_packing": False,
        "val_set_size": 0.0,
        "bf16": "auto",
        "seed": setup.seed,
        "output_dir": "adapter",
    }
    if setup.loraplus_ratio != 1.0:
        training["loraplus_lr_ratio"] = setup.loraplus_ratio
    return yaml_text(
        ["axolotl train axolotl.yaml", *origin(setup)],
        [{"base_model": setup.base_model}, adapter, training, {"datasets": [_dataset(setup)]}],
    )


def _dataset(setup: TrainingSetup) -> dict[str, Any]:
    where = data_source(setup, {"path": setup.data, "ds_type": setup.data_kind})
    if setup.data_format == "messages":
        return {**where, "type": "chat_template", "field_messages": "messages"}
    if setup.data_format == "prompt-completion":
        own = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}
        return {**where, "type": {**own, "no_input_format": "{instruction}"}}
    if setup.data_format == "text":
        return {**where, "type": "completion", "field": "text"}
    return {**where, "type": "alpaca"}
