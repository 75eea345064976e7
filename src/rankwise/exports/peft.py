"""The whole training for PEFT and transformers, as Python: every task."""

from rankwise.exports.recipe import CAUSAL_LM, TrainingSetup
from rankwise.exports.yaml_text import comment, origin
from rankwise.models.auto import AUTO_CLASSES


def peft_config(setup: TrainingSetup) -> str:
    """Return ``peft_config.py``: ``base``, ``lora_config``, ``training_arguments``, perhaps ``quantization_config``."""
    adapter: dict[str, object] = {
        "task_type": setup.task_type,
        "r": setup.rank,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": setup.target_modules if setup.everywhere else list(setup.target_modules),
    }
    if setup.modules_to_save:
        adapter["modules_to_save"] = list(setup.modules_to_save)
    if setup.use_rslora:
        adapter["use_rslora"] = True
    if setup.use_dora:
        adapter["use_dora"] = True
    if setup.init != "default":
        adapter["init_lora_weights"] = setup.init
    bits = ", quantization_config=quantization_config" if setup.bits or setup.from_gguf else ""
    labels = (
        "" if setup.task_type == CAUSAL_LM else ", with the labels that best/README.md gives it"
    )
    notes = [
        f"{AUTO_CLASSES[setup.task_type]}.from_pretrained(**base{bits}) loads the base{labels}; "
        "AutoTokenizer.from_pretrained(**base) its tokenizer. "
        f"Texts are cut at {setup.max_length} tokens.",
        *origin(setup),
    ]
    notes.append(
        "get_peft_model(model, lora_config) puts the adapter on; Trainer takes training_arguments."
    )
    if setup.loraplus_ratio != 1.0:
        notes.append(
            f"LoRA+: B learns at {setup.loraplus_ratio:g} times this rate, by "
            f"peft.optimizers.create_loraplus_optimizer with loraplus_lr_ratio={setup.loraplus_ratio:g}."
        )
    from_peft = "LoraConfig"
    if setup.init == "eva":
        # As the sweep has it: every layer keeps its rank, and all tokens count.
        adapter["eva_config"] = _Code("EvaConfig(rho=1.0, use_label_mask=False)")
        from_peft = "EvaConfig, LoraConfig"
        notes.append(
            "EVA: before training call peft.initialize_lora_eva_weights(model, batches) with padded batches of "
            "training examples, none smaller than the rank: the config alone leaves A random. Where a target sees one "
            "row for each sequence, as BERT's pooler does, it needs a prepare_layer_inputs_fn too."
        )
    quantization = ("BitsAndBytesConfig", setup.bits) if setup.bits else None
    if setup.from_gguf:
        # Else it may stay packed, and transformers lets no such model be trained or written.
        quantization = ("GgufConfig", {"dequantize": True})
        notes.append(
            "GgufConfig unpacks the GGUF file: leave it out where transformers has none yet and always does."
        )
    place, options = setup.loading
    names = "TrainingArguments" if quantization is None else f"{quantization[0]}, TrainingArguments"
    parts = [
        comment(notes),
        f"from peft import {from_peft}\nfrom transformers import {names}\n",
        _call("base", "dict", {"pretrained_model_name_or_path": place, **options}),
        _call("lora_config", "LoraConfig", adapter),
        _call("training_arguments", "TrainingArguments", setup.training_arguments),
    ]
    if quantization is not None:
        parts.append(_call("quantization_config", *quantization))
    return "\n".join(parts)


class _Code(str):
    """A value that is written as it is: Python, not a text."""

    __repr__ = str.__str__


def _call(name: str, function: str, arguments: dict[str, object]) -> str:
    lines = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    return f"{name} = {function}(\n{lines})\n"
