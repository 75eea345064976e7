"""PEFT and transformers: the whole training as Python, for every task."""

from rankwise.escaping import comment, python
from rankwise.exports.recipe import Recipe
from rankwise.exports.yaml_text import origin_notes
from rankwise.models.auto import AUTO_CLASSES


def peft_config(recipe: Recipe) -> str:
    """Return ``peft_config.py``, which defines the arguments of each step in the training."""
    quantization = _quantization(recipe)
    from_peft = "EvaConfig, LoraConfig" if recipe.adapter.init == "eva" else "LoraConfig"
    from_transformers = "TrainingArguments"
    if quantization is not None:
        from_transformers = f"{quantization[0]}, TrainingArguments"
    place, options = recipe.model.load_arguments
    parts = [
        comment(_notes(recipe)),
        f"from peft import {from_peft}\nfrom transformers import {from_transformers}\n",
        _call("base", "dict", {"pretrained_model_name_or_path": place, **options}),
        f"dtype = {python(recipe.optimizer.dtype)}\n",
        _call("lora_config", "LoraConfig", _adapter(recipe)),
        _call("training_arguments", "TrainingArguments", _training(recipe)),
    ]
    if quantization is not None:
        parts.append(_call("quantization_config", *quantization))
    return "\n".join(parts)


def _adapter(recipe: Recipe) -> dict[str, object]:
    adapter = recipe.adapter
    targets = adapter.target_modules
    settings: dict[str, object] = {
        "task_type": recipe.model.task_type,
        "r": adapter.rank,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }
    if adapter.modules_to_save:
        settings["modules_to_save"] = list(adapter.modules_to_save)
    if adapter.use_rslora:
        settings["use_rslora"] = True
    if adapter.use_dora:
        settings["use_dora"] = True
    if adapter.init != "default":
        settings["init_lora_weights"] = adapter.init
    if adapter.init == "eva":
        # As in the sweep: every layer keeps its rank, and all tokens count.
        settings["eva_config"] = _Expression("EvaConfig(rho=1.0, use_label_mask=False)")
    return settings


def _training(recipe: Recipe) -> dict[str, object]:
    arguments = recipe.optimizer.training_arguments
    if recipe.optimizer.gradient_checkpointing:
        arguments["gradient_checkpointing"] = True
    return arguments


def _quantization(recipe: Recipe) -> tuple[str, dict[str, object]] | None:
    """Return the class and the arguments of ``quantization_config``; None if there is none."""
    if recipe.model.is_gguf:
        # transformers neither trains nor saves a GGUF model without unpacking it.
        return "GgufConfig", {"dequantize": True}
    arguments = recipe.bitsandbytes_arguments
    return ("BitsAndBytesConfig", arguments) if arguments else None


def _notes(recipe: Recipe) -> list[str]:
    model, ratio = recipe.model, recipe.optimizer.loraplus_ratio
    arguments = "**base, dtype=dtype"
    if _quantization(recipe) is not None:
        arguments += ", quantization_config=quantization_config"
    labels = "" if model.is_causal_lm else ", with the labels listed in best/README.md"
    notes = [
        f"{AUTO_CLASSES[model.task_type]}.from_pretrained({arguments}) loads the base{labels}; "
        "AutoTokenizer.from_pretrained(**base) loads its tokenizer. "
        f"Truncate texts at {recipe.data.max_length} tokens.",
        *origin_notes(recipe),
        "get_peft_model(model, lora_config) adds the adapter; give training_arguments to Trainer.",
    ]
    if ratio != 1.0:
        notes.append(
            f"LoRA+: B learns at {ratio:g} times this rate. Use "
            f"peft.optimizers.create_loraplus_optimizer with loraplus_lr_ratio={ratio:g}."
        )
    if recipe.adapter.init == "eva":
        notes.append(
            "EVA: before training, call peft.initialize_lora_eva_weights(model, batches) with "
            "padded batches of training examples, none smaller than the rank; the config alone "
            "leaves A random. A target that gets one row per sequence, such as the pooler of BERT, "
            "also needs a prepare_layer_inputs_fn."
        )
    if model.is_gguf:
        notes.append(
            "GgufConfig unpacks the GGUF file. Leave it out if your transformers has no "
            "GgufConfig: such a version always unpacks."
        )
    return notes


class _Expression(str):
    """Python code, written without quotes."""

    __repr__ = str.__str__


def _call(name: str, function: str, arguments: dict[str, object]) -> str:
    lines = "".join(f"    {key}={python(value)},\n" for key, value in arguments.items())
    return f"{name} = {function}(\n{lines})\n"
