"""The recipe of a finished trial: everything that another tool needs to train in the same way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rankwise.engine.config import OptimizerName, SchedulerName
from rankwise.engine.schedule import OPTIMIZERS, SCHEDULERS
from rankwise.errors import RequestError
from rankwise.models.config import PrecisionName
from rankwise.models.files import load_arguments
from rankwise.models.targets import ALL_LINEAR
from rankwise.store.records import (
    SweepRecord,
    TrainingSettings,
    TrialRecord,
    read_sweep,
    read_trial,
)
from rankwise.store.trial_files import ADAPTER_CONFIG, json_object, read_file, reading_file
from rankwise.tasks.chat_formats import DataLayout, read_data_layout
from rankwise.tasks.files import plain_name
from rankwise.tasks.hf_datasets import split_hub_id
from rankwise.tasks.readers import is_hub_id

CAUSAL_LM = "CAUSAL_LM"  # PEFT's name of the task that TRL, Axolotl and LLaMA-Factory train
SAVED_BASE = "base"  # directory for a GGUF base that a tool cannot load


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The base model and how to load it.

    Attributes:
        task_type: PEFT's name of the task.
        name: Directory, GGUF file or hub id.
        quantization: Precision of the frozen layers: ``none``, ``int8``, ``nf4`` or ``nf4-dq``.
    """

    task_type: str
    name: str
    trust_remote_code: bool
    quantization: str

    @property
    def is_causal_lm(self) -> bool:
        """Whether TRL's SFT, Axolotl and LLaMA-Factory train this task."""
        return self.task_type == CAUSAL_LM

    @property
    def is_gguf(self) -> bool:
        """Whether the base is a GGUF file."""
        return bool(load_arguments(self.name)[1])

    @property
    def directory(self) -> str:
        """The base for tools that load no GGUF file: the user saves it as a directory first."""
        return SAVED_BASE if self.is_gguf else self.name

    @property
    def remote_code(self) -> dict[str, bool]:
        """The setting that permits code of the base; every tool calls it the same."""
        return {"trust_remote_code": True} if self.trust_remote_code else {}

    @property
    def load_arguments(self) -> tuple[str, dict[str, Any]]:
        """Arguments of ``from_pretrained``: directory or hub id, and options."""
        place, file = load_arguments(self.name)
        return place, {**file, **self.remote_code}


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """The adapter.

    Attributes:
        rank: Rank to train at.
        truncate_to: Rank to truncate the trained adapter to; None to keep it.
        dropout: Dropout of the adapter's inputs.
        init: Initial values, as `rankwise.engine.config.INITS` names them.
        target_modules: ``all-linear``, or layer names.
        conv1d_names: Last parts of the names of target layers that are GPT-2's Conv1D.
        modules_to_save: Modules trained in full and saved with the adapter.
        healing: Steps and learning rate of a short training after the truncation, if there is one.
    """

    rank: int
    truncate_to: int | None
    lora_alpha: float
    dropout: float
    use_rslora: bool
    use_dora: bool
    init: str
    target_modules: str | tuple[str, ...]
    conv1d_names: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    healing: tuple[int, float] | None

    @property
    def targets_all(self) -> bool:
        """Whether every linear layer but the output gets an adapter."""
        return self.target_modules == ALL_LINEAR

    @property
    def named_targets(self) -> list[str] | None:
        """Layer names for a tool whose "all linear" misses Conv1D; None if it finds all layers."""
        if self.targets_all:
            return list(self.conv1d_names) or None
        return list(self.target_modules)


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """The optimisation.

    Attributes:
        learning_rate: Peak rate, to which it rises linearly.
        loraplus_ratio: Learning rate of B divided by that of A (LoRA+); 1 for plain LoRA.
        max_steps: Steps that the request asked for; None for those of the epochs.
        micro_batch_size: Examples of a batch that go through the model at once.
        steps: Optimizer steps in total.
        lr_scheduler: Course of the rate after the warm-up.
        warmup_ratio: Share of the steps over which the learning rate rises.
        max_grad_norm: Gradients are clipped to this norm.
        precision: Precision of the base: ``fp32``, ``bf16`` or ``fp16``.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        seed: Seed of the chosen trial.
    """

    learning_rate: float
    loraplus_ratio: float
    epochs: int
    max_steps: int | None
    batch_size: int
    micro_batch_size: int
    steps: int
    lr_scheduler: SchedulerName
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    optimizer: OptimizerName
    precision: PrecisionName
    gradient_checkpointing: bool
    seed: int

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return math.ceil(self.warmup_ratio * self.steps)

    @property
    def accumulated_batches(self) -> int:
        """Micro-batches whose gradients add up to a batch's."""
        return self.batch_size // self.micro_batch_size

    @property
    def step_limit(self) -> dict[str, int]:
        """The setting that limits the steps; every tool calls it the same."""
        return {} if self.max_steps is None else {"max_steps": self.max_steps}

    @property
    def dtype(self) -> str:
        """PyTorch's name of the base's precision."""
        return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.precision]

    @property
    def training_arguments(self) -> dict[str, Any]:
        """Settings for TrainingArguments of transformers, which TRL and LLaMA-Factory share."""
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            **self.step_limit,
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulated_batches,
            "optim": OPTIMIZERS[self.optimizer],
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "lr_scheduler_type": SCHEDULERS[self.lr_scheduler],
            "warmup_steps": self.warmup_steps,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
            "seed": self.seed,
            "output_dir": "adapter",
        }


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The training data.

    Attributes:
        source: Path or hub id; None for a built-in sample.
        max_length: Number of tokens to which an example is truncated.
        held_out_examples: Number of examples of the same source that compared the ranks.
        test_examples: Number of examples of the same source that tested the recommended adapter.
        limited: Whether the request limited `train_examples`, so that the source may hold more.
        layout: Columns and roles of instruction data; None for another task.
        chat_template: Whether the tokenizer has a chat template.
        answers_marked: Whether that template marks the assistant's words.
    """

    source: str | None
    max_length: int
    train_examples: int
    held_out_examples: int
    test_examples: int
    limited: bool
    layout: DataLayout | None
    chat_template: bool
    answers_marked: bool

    @property
    def file_kind(self) -> str:
        """Kind of the data file, as `datasets` names it: csv, parquet or json."""
        suffix = plain_name(Path(self.source or "")).suffix.lower()
        return {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}.get(suffix, "json")

    @property
    def hub_parts(self) -> tuple[str, str | None, str] | None:
        """Name, configuration and split of a data set on a hub; None for files."""
        if self.source is None or not is_hub_id(Path(self.source)):
            return None
        return split_hub_id(Path(self.source))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the recommended adapter is trained.

    Attributes:
        provisional: how sure the rank is, where it is one to use for now.
    """

    model: ModelRecipe
    adapter: AdapterRecipe
    optimizer: OptimizerRecipe
    data: DataRecipe
    provisional: str | None = None

    @property
    def layout(self) -> DataLayout:
        """Columns and roles of the data of a causal language model."""
        assert self.data.layout is not None
        return self.data.layout

    @property
    def bitsandbytes_arguments(self) -> dict[str, Any]:
        """Arguments for BitsAndBytesConfig of transformers; none for a base in fp32."""
        quantization = self.model.quantization
        if quantization == "none":
            return {}
        arguments: dict[str, Any] = {"load_in_8bit": True}
        if quantization != "int8":
            arguments = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
            arguments["bnb_4bit_use_double_quant"] = quantization == "nf4-dq"
            arguments["bnb_4bit_compute_dtype"] = self.optimizer.dtype
        if self.adapter.modules_to_save:  # they stay unquantised, also in 4 bits
            arguments["llm_int8_skip_modules"] = list(self.adapter.modules_to_save)
        return arguments


def read_recipe(directory: Path, trial_name: str) -> Recipe:
    """Read the recipe of a trial in a sweep directory; a truncated adapter has its source's.

    A healed one has that of the adapter that it was truncated from, and the short training besides.

    Raises:
        RequestError: The sweep has no ``sweep.json``.
        RankwiseError: A trial is damaged.
    """
    sweep = read_sweep(directory)
    if sweep is None:
        raise RequestError(f"{str(directory)!r} has no sweep.json; run the sweep to its end first")
    trained, truncate_to, healing = read_trial(directory / "trials" / trial_name), None, None
    if trained.starts_from is not None:
        healing = trained.step, trained.learning_rate
        trained = read_trial(directory / "trials" / trained.starts_from)
    if trained.truncated_from is not None:
        truncate_to = trained.rank
        trained = read_trial(directory / "trials" / trained.truncated_from)
    with reading_file(trained.directory, ADAPTER_CONFIG):
        config = json_object(read_file(trained.directory, ADAPTER_CONFIG))
    settings = sweep.training
    return Recipe(
        model=ModelRecipe(
            task_type=config["task_type"],
            name=_absolute(sweep.paths.model or config["base_model_name_or_path"]),
            trust_remote_code=settings.trust_remote_code,
            quantization=settings.quantization,
        ),
        adapter=_adapter_recipe(sweep, trained, config, truncate_to, healing),
        optimizer=_optimizer_recipe(sweep.training, trained),
        data=_data_recipe(sweep),
    )


def _adapter_recipe(
    sweep: SweepRecord,
    trained: TrialRecord,
    config: dict[str, Any],
    truncate_to: int | None,
    healing: tuple[int, float] | None,
) -> AdapterRecipe:
    layers = config["target_modules"]
    is_conv1d = config.get("fan_in_fan_out")  # PEFT sets it when it meets Conv1D
    endings = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
    return AdapterRecipe(
        rank=trained.rank,  # PiSSA and OLoRA adapters are saved at twice their rank
        truncate_to=truncate_to,
        lora_alpha=trained.lora_alpha,
        use_rslora=trained.use_rslora,
        dropout=sweep.training.lora_dropout,
        use_dora=config["use_dora"],
        init=sweep.training.init,
        target_modules=_targets(sweep.training.target_modules, layers),
        conv1d_names=tuple(endings) if is_conv1d else (),
        modules_to_save=_saved_in_full(trained.directory, config["modules_to_save"] or ()),
        healing=healing,
    )


def _optimizer_recipe(settings: TrainingSettings, trained: TrialRecord) -> OptimizerRecipe:
    assert settings.warmup_ratio is not None  # a user's trainer has exports of its own
    return OptimizerRecipe(
        learning_rate=trained.learning_rate,
        loraplus_ratio=settings.loraplus_ratio,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        batch_size=settings.batch_size,
        micro_batch_size=_micro_batch_size(settings),
        steps=trained.step,
        lr_scheduler=settings.lr_scheduler,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optimizer=settings.optimizer,
        precision=settings.precision,
        gradient_checkpointing=settings.gradient_checkpointing == "on",
        seed=trained.seed,
    )


def _micro_batch_size(settings: TrainingSettings) -> int:
    """Return the examples of the largest micro-batch within the limit of tokens.

    Tools count examples, equally many in each micro-batch, so it is a divisor of the batch.
    """
    batch, tokens = settings.batch_size, settings.micro_batch_tokens
    if tokens is None:
        return batch
    fitting = max(1, tokens // settings.max_length)
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= fitting)


def _data_recipe(sweep: SweepRecord) -> DataRecipe:
    task, data = sweep.task, sweep.paths.data
    one_source = sweep.paths.eval_data is None
    return DataRecipe(
        source=None if data is None else _absolute(data),
        max_length=sweep.training.max_length,
        train_examples=task.train_examples,
        held_out_examples=task.held_out_examples if one_source else 0,
        test_examples=task.test_examples if one_source else 0,
        limited=sweep.training.train_examples == task.train_examples,
        layout=read_data_layout(task.data_layout),
        chat_template=task.chat_template,
        answers_marked=task.answers_marked,
    )


def _saved_in_full(trial: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules in the adapter file; PEFT's config lists every possible head."""
    with safe_open(trial / "adapter" / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    return tuple(name for name in dict.fromkeys(names) if any(f".{name}." in key for key in keys))


def _absolute(path: str) -> str:
    """Return an absolute path; a hub id stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _targets(requested: str | Sequence[str], layers: Sequence[str]) -> str | tuple[str, ...]:
    """Return targets that every tool understands: all-linear, plain names, or all full names."""
    names = [requested] if isinstance(requested, str) else list(requested)
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            return tuple(sorted(layers))  # a group or a regular expression
    return tuple(names)
