"""LLaMA-Factory: the YAML file that ``llamafactory-cli train`` takes, and the description of the data it asks for."""

import json
from typing import Any

from rankwise.exports.setup import TrainingSetup
from rankwise.exports.text import adapter_only, origin, trains_causal_lms, without, yaml_text

DATASET = "sweep_data"


def llama_factory_config(setup: TrainingSetup) -> str:
    """Return ``llama_factory.yaml``: fields of LLaMA-Factory's argument classes."""
    other = setup.init not in ("default", "pissa")
    lacking = without(setup, "LLaMA-Factory", **{f"the_initialisation_{setup.init}": other})
    if lacking is not None:
        return lacking
    adapter: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": setup.rank,
        "lora_alpha": int(setup.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target": "all" if setup.everywhere else ",".join(setup.target_modules),
        "use_rslora": setup.use_rslora,
        "use_dora": setup.use_dora,
    }
    if setup.init == "pissa":
        adapter["pissa_init"] = True
    if not trains_causal_lms(setup):
        return yaml_text([*adapter_only(setup, "LLaMA-Factory"), *origin(setup)[:1]], [adapter])
    model: dict[str, Any] = {"model_name_or_path": setup.base_model}
    if setup.quantization != "none":
        model |= {"quantization_method": "bnb", "quantization_bit": 8 if setup.quantization == "int8" else 4}
        if setup.quantization != "int8":
            model |= {"quantization_type": "nf4", "double_quantization": setup.quantization == "nf4-dq"}
    training: dict[str, Any] = {
        "stage": "pt" if setup.data_format == "text" else "sft",
        "do_train": True,
        **setup.training_arguments,
        "gradient_accumulation_steps": 1,
        "cutoff_len": setup.max_length,
    }
    if setup.loraplus_ratio != 1.0:
        training["loraplus_lr_ratio"] = setup.loraplus_ratio
    return yaml_text(
        [
            "llamafactory-cli train llama_factory.yaml, from this directory: dataset_info.json describes the data.",
            *origin(setup),
        ],
        [model, adapter, training, {"dataset": DATASET, "dataset_dir": "."}],
    )


def dataset_info(setup: TrainingSetup) -> str:
    """Return ``dataset_info.json``, which names LLaMA-Factory the data and their columns."""
    described: dict[str, Any] = {"file_name": setup.data}
    if setup.hub_data is not None:
        name, config, split = setup.hub_data
        described = {"hf_hub_url": name, **({} if config is None else {"subset": config}), "split": split}
    if setup.data_format == "messages":
        described |= {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    elif setup.data_format == "prompt-completion":
        described |= {"columns": {"prompt": "prompt", "response": "completion"}}
    elif setup.data_format == "text":
        described |= {"columns": {"prompt": "text"}}
    else:
        described |= {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}
    return json.dumps({DATASET: described}, indent=2) + "\n"
