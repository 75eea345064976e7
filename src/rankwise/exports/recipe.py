"""What a finished sweep says about how to train: read from its directory, for any tool to be told."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rankwise.engine.config import TrainingConfig
from rankwise.errors import RequestError
from rankwise.models.files import load_arguments
from rankwise.models.targets import ALL_LINEAR
from rankwise.store.records import read_json, read_sweep, read_trial
from rankwise.tasks.chat_formats import DataLayout, read_data_layout
from rankwise.tasks.hf_datasets import split_hub_id
from rankwise.tasks.readers import is_hub_id

CAUSAL_LM = "CAUSAL_LM"  # PEFT's name of the task that TRL, Axolotl and LLaMA-Factory train
SAVED_BASE = "base"


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How the chosen adapter is trained.

    Attributes:
        task_type: PEFT's name of the task.
        base_model: a directory, a GGUF file or a hub id.
        trust_remote_code: whether Python code that comes with the base is run.
        rank: r to train at.
        keep_rank: r to cut the trained adapter to; None where it is kept as it is.
        lora_alpha: for `rank`.
        use_rslora: scaling by the root of the rank.
        use_dora: DoRA's magnitudes too.
        init: how the adapter is initialised, as `rankwise.sweeps.config` names it.
        loraplus_ratio: LoRA+: learning rate of B divided by that of A; 1 for plain LoRA.
        quantization: of the frozen base: ``"none"``, ``"int8"``, ``"nf4"`` or ``"nf4-dq"``.
        target_modules: ``"all-linear"``, or names, or all layers by their full names.
        conv1d: the last parts of the target layers' names where they are GPT-2's Conv1D; else empty.
        modules_to_save: trained in full beside the adapter.
        learning_rate: the best of those tried for this rank; it rises linearly, then falls linearly to 0.
        epochs: passes over the training data.
        batch_size: examples in a batch.
        steps: optimizer steps in all.
        warmup_steps: steps over which the learning rate rises.
        warmup_share: the share of all steps that these are, before they were rounded up.
        max_grad_norm: gradients are clipped to it.
        max_length: tokens kept of an example.
        seed: of the trial whose adapter was chosen.
        data: the training data's path; None for a built-in sample.
        train_examples: of these data, that the sweep trained on; None where it did not keep how many.
        held_out_examples: of the same data, that judged the ranks; 0 where they came from elsewhere.
        test_examples: of the same data, that judged the chosen adapter.
        limited: whether the sweep was allowed no more than `train_examples`, so that the data may hold more.
        layout: how a causal LM's data are held; None for another task.
        chat_template: whether the tokenizer has one, which makes chats of Alpaca's instructions; None where the sweep
            did not keep it.
        answers_marked: whether that template itself marks what the assistant says; None where the sweep did not keep
            it.
    """

    task_type: str
    base_model: str
    trust_remote_code: bool
    rank: int
    keep_rank: int | None
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    init: str
    loraplus_ratio: float
    quantization: str
    target_modules: str | tuple[str, ...]
    conv1d: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    learning_rate: float
    epochs: int
    batch_size: int
    steps: int
    warmup_steps: int
    warmup_share: float
    max_grad_norm: float
    max_length: int
    seed: int
    data: str | None
    train_examples: int | None
    held_out_examples: int
    test_examples: int
    limited: bool
    layout: DataLayout | None
    chat_template: bool | None
    answers_marked: bool | None

    @property
    def from_gguf(self) -> bool:
        """Whether the base is a GGUF file."""
        return bool(load_arguments(self.base_model)[1])

    @property
    def base_directory(self) -> str:
        """The base for tools that load no GGUF file: such a base has to be written to a directory first."""
        return SAVED_BASE if self.from_gguf else self.base_model

    @property
    def remote_code(self) -> dict[str, bool]:
        """The permission to run the base's code, which every tool names alike; nothing where the sweep had none."""
        return {"trust_remote_code": True} if self.trust_remote_code else {}

    @property
    def loading(self) -> tuple[str, dict[str, Any]]:
        """What ``from_pretrained`` takes for the base and its tokenizer: a directory or hub id, and options."""
        place, file = load_arguments(self.base_model)
        return place, {**file, **self.remote_code}

    @property
    def everywhere(self) -> bool:
        """Whether every linear layer but the output gets an adapter."""
        return self.target_modules == ALL_LINEAR

    @property
    def named_targets(self) -> list[str] | None:
        """The targets' names for a tool whose word for all layers finds no Conv1D; None where that word does."""
        return (list(self.conv1d) or None) if self.everywhere else list(self.target_modules)

    @property
    def bits(self) -> dict[str, Any]:
        """The base's precision by the names of transformers' BitsAndBytesConfig; nothing for a base in fp32.

        Modules trained in full stay as they are; where there are none, the output layer does, as transformers has it.
        """
        if self.quantization == "none":
            return {}
        bits: dict[str, Any] = {"load_in_8bit": True}
        if self.quantization != "int8":
            bits = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": self.quantization == "nf4-dq",
            }
        if self.modules_to_save:
            bits["llm_int8_skip_modules"] = list(self.modules_to_save)  # of 4-bit layers as well
        return bits

    @property
    def training_arguments(self) -> dict[str, Any]:
        """The training by the names of transformers' TrainingArguments, which TRL and LLaMA-Factory build upon."""
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "optim": "adamw_torch_fused",
            "weight_decay": 0.0,
            "max_grad_norm": self.max_grad_norm,
            "lr_scheduler_type": "linear",
            "warmup_steps": self.warmup_steps,
            "seed": self.seed,
            "output_dir": "adapter",
        }

    @property
    def data_kind(self) -> str:
        """The data file's kind as `datasets` names it: csv, parquet or json."""
        suffix = Path(self.data or "").suffix.lower()
        return {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}.get(suffix, "json")

    @property
    def hub_data(self) -> tuple[str, str | None, str] | None:
        """Name, configuration and split of a hub's data set; None where the data are files."""
        return (
            split_hub_id(Path(self.data))
            if self.data is not None and is_hub_id(Path(self.data))
            else None
        )


def read_setup(directory: Path, trial_name: str) -> TrainingSetup:
    """Read how a trial of a sweep was trained, or, where it is a cut, the trial that it was cut from.

    Args:
        directory: the sweep directory.
        trial_name: the chosen trial.

    Raises:
        RequestError: a file of the sweep is missing.
    """
    sweep = read_sweep(directory)
    if sweep is None:
        raise RequestError(f"{str(directory)!r} has no sweep.json; run the sweep to its end first")
    trained, keep = read_trial(directory / "trials" / trial_name), None
    if trained.truncated_from is not None:
        keep = trained.rank
        trained = read_trial(directory / "trials" / trained.truncated_from)
    adapter = _needed(trained.directory / "adapter" / "adapter_config.json")
    settings, task, split = sweep.training, sweep.task, sweep.paths.eval_data is None
    recipe = TrainingConfig(epochs=settings.epochs, batch_size=settings.batch_size)
    return TrainingSetup(
        task_type=adapter["task_type"],
        base_model=_absolute(sweep.paths.model or adapter["base_model_name_or_path"]),
        trust_remote_code=settings.trust_remote_code,
        rank=trained.rank,
        keep_rank=keep,
        # Not the adapter's: with PiSSA and OLoRA that is saved for the original base, at twice the rank.
        lora_alpha=trained.lora_alpha,
        use_rslora=trained.use_rslora,
        use_dora=adapter["use_dora"],
        init=settings.init,
        loraplus_ratio=settings.loraplus_ratio,
        quantization=settings.quantization,
        target_modules=_targets(settings.target_modules, adapter["target_modules"]),
        # With which PEFT notes that it met Conv1D.
        conv1d=_last_parts(adapter["target_modules"]) if adapter.get("fan_in_fan_out") else (),
        modules_to_save=_saved_in_full(
            trained.directory / "adapter", adapter["modules_to_save"] or ()
        ),
        learning_rate=trained.learning_rate,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        steps=trained.step,
        warmup_steps=math.ceil(recipe.warmup_share * trained.step),
        warmup_share=recipe.warmup_share,
        max_grad_norm=recipe.max_grad_norm,
        max_length=settings.max_length,
        seed=trained.seed,
        data=None if sweep.paths.data is None else _absolute(sweep.paths.data),
        train_examples=task.train_examples,
        held_out_examples=task.held_out_examples if split else 0,
        test_examples=task.test_examples if split else 0,
        limited=settings.train_examples == task.train_examples,
        layout=read_data_layout(task.data_layout),
        chat_template=task.chat_template,
        answers_marked=task.answers_marked,
    )


def _needed(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        raise RequestError(f"{str(path)!r} is missing; run the sweep to its end first")
    return content


def _saved_in_full(adapter: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of which the adapter's file holds something: PEFT lists every name that a head may have."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    return tuple(name for name in dict.fromkeys(names) if any(f".{name}." in key for key in keys))


def _last_parts(layers: list[str]) -> tuple[str, ...]:
    return tuple(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))


def _absolute(path: str) -> str:
    """Return a path that holds from any directory; a hub id stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _targets(asked: str | Sequence[str], layers: list[str]) -> str | tuple[str, ...]:
    """Return targets as every tool understands them: all-linear, plain names, else all layers by name."""
    names = [asked] if isinstance(asked, str) else asked
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    plain = all(
        any(layer == name or layer.endswith(f".{name}") for layer in layers) for name in names
    )
    return tuple(names if plain else sorted(layers))
