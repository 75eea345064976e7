"""TRL: the YAML file that ``trl sft --config`` takes."""

import re
from typing import Any

from rankwise.exports.data import layout_of, quoted, save_chats, save_messages, unknown_template
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
from rankwise.tasks.chat_formats import MESSAGE_KEYS


def trl_config(setup: TrainingSetup) -> str:
    """Return ``trl.yaml``: fields of TRL's ModelConfig, SFTConfig and DatasetMixtureConfig."""
    lacking = without(
        setup,
        "trl sft",
        LoRA_plus=setup.loraplus_ratio != 1.0,
        **{f"the_initialisation_{setup.init}": setup.init != "default"},
    )
    if lacking is not None:
        return lacking
    adapter: dict[str, Any] = {
        "use_peft": True,
        "lora_r": setup.rank,
        "lora_alpha": int(setup.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": _targets(setup),
        "use_rslora": setup.use_rslora,
        "use_dora": setup.use_dora,
    }
    if not trains_causal_lms(setup):
        return yaml_text([*adapter_only(setup, "trl sft"), *origin(setup)[:1]], [adapter])
    quantizations: dict[str, dict[str, Any]] = {
        "none": {},
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "nf4-dq": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": True,
        },
    }
    training = {
        **setup.training_arguments,
        "gradient_accumulation_steps": 1,
        "max_length": setup.max_length,
        "packing": False,
    }
    data, notes = _data(setup)
    base = {"model_name_or_path": setup.base_directory, **setup.remote_code}
    return yaml_text(
        ["trl sft --config trl.yaml", *origin(setup), *gguf_base(setup, "TRL"), *notes],
        [base | quantizations[setup.quantization], adapter, training, data],
    )


def _targets(setup: TrainingSetup) -> list[str]:
    """Return the targets: TRL gives PEFT a single one as a text, which is a regular expression or "all-linear"."""
    if setup.everywhere:
        return ["all-linear"]
    if len(setup.target_modules) == 1:
        return [rf"(.*\.)?{re.escape(setup.target_modules[0])}"]
    return list(setup.target_modules)


def _data(setup: TrainingSetup) -> tuple[dict[str, Any], list[str]]:
    """Return the data's settings, and what to know about them.

    TRL goes by the names of columns, and by those of others too: a column ``prompt`` beside messages is taken for a
    prompt. So the columns that it is to read are named.
    """
    files, layout = (
        {"path": setup.data_kind, "data_files": setup.data, "split": "train"},
        layout_of(setup),
    )

    def reads(*columns: str) -> dict[str, Any]:
        return {"datasets": [{**data_source(setup, files), "columns": list(columns)}]}

    if layout.data_format == "messages":
        # TRL rewrites ShareGPT's keys in a column conversations, but refuses them with assistant_only_loss.
        named = layout.columns["messages"] == "messages" and layout.keys == (MESSAGE_KEYS,)
        readable = named and not layout.renames_roles and not layout.as_text
        notes = [] if readable else [save_messages(layout, "TRL", "messages")]
        return {**reads("messages"), "assistant_only_loss": True}, [*notes, *_unmarked(setup)]
    if layout.data_format == "alpaca" and setup.chat_template:
        return {**reads("messages"), "assistant_only_loss": True}, [
            save_chats(layout, "TRL"),
            *_unmarked(setup),
        ]
    if layout.data_format == "alpaca":
        note = (
            f"TRL wants columns prompt and completion. Save {quoted(layout)} so first: as prompt what goes before the "
            "answer in Stanford Alpaca's prompt, on which rankwise trained and which axolotl.yaml holds in full."
        )
        return reads("prompt", "completion"), [note, *unknown_template(setup)]
    if layout.data_format == "prompt-completion":
        named = tuple(layout.columns.values()) == ("prompt", "completion")
        note = f"TRL wants columns prompt and completion: rename {quoted(layout)} first."
        return reads("prompt", "completion"), [] if named else [note]
    column = layout.columns["text"]
    return {**reads(column), "dataset_text_field": column}, []


def _unmarked(setup: TrainingSetup) -> list[str]:
    """Say what TRL needs to train on the answers of chats alone, where the tokenizer may not have it."""
    if setup.answers_marked:
        return []
    own = (
        "has no marks"
        if setup.answers_marked is False
        else "may have none, which this sweep did not keep"
    )
    return [
        "With assistant_only_loss TRL trains on what the assistant says, as rankwise did. It refuses chat templates "
        f"that neither mark that by {{% generation %}} nor are among those it knows, and this tokenizer's {own}. If "
        "TRL calls it not training-compatible: in a copy of the template put {% generation %} and {% endgeneration %} "
        "around what the assistant says and the token that ends it, and name that file, say marked.jinja, as "
        "chat_template_path here.",
        "Without assistant_only_loss TRL would train on the questions too. Where each dialogue has one answer, "
        "columns prompt and completion, each a list of messages, need neither it nor marks, but then the blanks that "
        "a template writes behind an answer are trained as well.",
    ]
