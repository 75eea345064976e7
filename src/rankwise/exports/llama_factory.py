"""LLaMA-Factory: the YAML file that ``llamafactory-cli train`` takes, and the description of the data it asks for."""

import json
from typing import Any

from rankwise.errors import some
from rankwise.exports.data import layout_of, save_messages, unknown_template
from rankwise.exports.recipe import TrainingSetup
from rankwise.exports.yaml_text import (
    adapter_only,
    gguf_base,
    origin,
    trains_causal_lms,
    without,
    yaml_text,
)
from rankwise.tasks.chat_formats import MESSAGE_KEYS, DataLayout

DATASET = "sweep_data"
ROLES = ("user", "assistant", "system")


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
        "lora_target": "all" if setup.named_targets is None else ",".join(setup.named_targets),
        "use_rslora": setup.use_rslora,
        "use_dora": setup.use_dora,
    }
    if setup.init == "pissa":
        # Exact, and not of few steps; converted for the base as it is, as the sweep's adapter is.
        adapter |= {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True}
    if not trains_causal_lms(setup):
        return yaml_text([*adapter_only(setup, "LLaMA-Factory"), *origin(setup)[:1]], [adapter])
    model: dict[str, Any] = {"model_name_or_path": setup.base_directory, **setup.remote_code}
    if setup.quantization != "none":
        model |= {
            "quantization_method": "bnb",
            "quantization_bit": 8 if setup.quantization == "int8" else 4,
        }
        if setup.quantization != "int8":
            model |= {
                "quantization_type": "nf4",
                "double_quantization": setup.quantization == "nf4-dq",
            }
    training: dict[str, Any] = {
        "stage": "pt" if layout_of(setup).data_format == "text" else "sft",
        "do_train": True,
        **setup.training_arguments,
        "gradient_accumulation_steps": 1,
        "cutoff_len": setup.max_length,
        "packing": False,  # which stage pt would turn on
    }
    if setup.loraplus_ratio != 1.0:
        training["loraplus_lr_ratio"] = setup.loraplus_ratio
    template, notes = _template(setup)
    if setup.init == "pissa":
        notes.append(
            f"For the base as it is on disk, take the adapter in {training['output_dir']}/pissa_converted: the other "
            "one goes with a base that PiSSA changed."
        )
    if (setup.data or "").endswith(".ndjson"):
        notes.append(
            "LLaMA-Factory reads no file that ends in .ndjson: rename it to .jsonl, in dataset_info.json too."
        )
    if training["stage"] == "sft":
        notes.append(
            "rankwise cut the end off examples that are too long; LLaMA-Factory shortens prompt and answer, each at "
            "its end, so that more of the answer stays."
        )
    return yaml_text(
        [
            "llamafactory-cli train llama_factory.yaml, from this directory: dataset_info.json describes the data.",
            *origin(setup),
            *gguf_base(setup, "LLaMA-Factory"),
            *notes,
        ],
        [model, adapter, training, {"dataset": DATASET, "dataset_dir": ".", **template}],
    )


def dataset_info(setup: TrainingSetup) -> str:
    """Return ``dataset_info.json``, which names LLaMA-Factory the data and their columns."""
    described: dict[str, Any] = {"file_name": setup.data}
    if setup.hub_data is not None:
        name, config, split = setup.hub_data
        described = {
            "hf_hub_url": name,
            **({} if config is None else {"subset": config}),
            "split": split,
        }
    layout = layout_of(setup)
    columns = layout.columns
    if layout.data_format == "messages":
        role, content = layout.keys[0] if _reads_messages(layout) else MESSAGE_KEYS
        names = layout.roles if _reads_messages(layout) else {}
        tags = {f"{who}_tag": names.get(who, (who,))[0] for who in ROLES}
        described |= {
            "formatting": "sharegpt",
            "columns": {"messages": columns["messages"]},
            "tags": {"role_tag": role, "content_tag": content, **tags},
        }
    elif layout.data_format == "alpaca":
        named = {"prompt": "instruction", "query": "input", "response": "output"}
        described |= {
            "columns": {theirs: columns[ours] for theirs, ours in named.items() if ours in columns}
        }
    elif layout.data_format == "prompt-completion":
        described |= {"columns": {"prompt": columns["prompt"], "response": columns["completion"]}}
    else:
        described |= {"columns": {"prompt": columns["text"]}}
    return json.dumps({DATASET: described}, indent=2) + "\n"


def _reads_messages(layout: DataLayout) -> bool:
    """Whether messages need no rewriting: lists, with one pair of keys and one name for each role."""
    return (
        not layout.as_text
        and len(layout.keys) == 1
        and all(len(names) == 1 for names in layout.roles.values())
    )


def _template(setup: TrainingSetup) -> tuple[dict[str, str], list[str]]:
    """Return how examples become text, if not by the tokenizer's chat template, and what to know about the data."""
    layout = layout_of(setup)
    if layout.data_format == "messages":
        notes = (
            []
            if _reads_messages(layout)
            else [save_messages(layout, "LLaMA-Factory", layout.columns["messages"])]
        )
        others = [role for role in layout.roles if role not in ROLES]
        if others:
            notes.append(
                f"LLaMA-Factory leaves out dialogues with roles beside {', '.join(ROLES)}: here {some(others)}."
            )
        return {}, notes
    if layout.data_format == "prompt-completion":
        return {"template": "empty"}, [
            "LLaMA-Factory's template empty writes prompts and completions as they are, but no end-of-sequence token, "
            f"which rankwise trained: write the tokenizer's behind each text in {layout.columns['completion']!r}."
        ]
    if layout.data_format == "text":
        return {}, []
    notes = []
    if "input" in layout.columns:
        between = "a blank line" if setup.chat_template else "Stanford Alpaca's heading for inputs"
        notes = [
            f"Between {layout.columns['instruction']!r} and {layout.columns['input']!r}, LLaMA-Factory puts a line "
            f"break; rankwise put {between}."
        ]
    return {} if setup.chat_template else {"template": "alpaca"}, [*notes, *unknown_template(setup)]
