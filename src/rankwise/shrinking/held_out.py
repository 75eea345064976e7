"""Held-out examples for adapters that are there already, and the base that they were trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.errors import RequestError, some
from rankwise.lora.adapter import PEFT_PREFIX, Adapter, factor_pairs
from rankwise.shrinking.config import ShrinkConfig
from rankwise.tasks.base import Encoded, Task
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective
from rankwise.tasks.samples import MINILM_HUB_ID, minilm_directory

if TYPE_CHECKING:
    from rankwise.models.base_model import BaseModel

ORDER_SEED = 0
"""Seed of the order in which examples are scored. Growing blocks must be random samples."""
SHARED = "are in the training data too"


@dataclass(frozen=True)
class HeldOut:
    """Tokenised held-out examples in the order in which they are scored.

    Attributes:
        task: the task, whose held-out part these are.
        encoded: the examples, in a random order that is always the same.
        notes: what happened to the data, for people.
    """

    task: Task
    encoded: Encoded
    notes: tuple[str, ...]


def read_held_out(config: ShrinkConfig, base: str, adapter: Adapter) -> Task:
    """Read the data that a request names; every row is a held-out example.

    Args:
        config: the request.
        base: name of the base model.
        adapter: one of the adapters, whose config tells the task if the request does not.

    Raises:
        RequestError: there are no data, or they cannot be used.
    """
    if config.data is None:
        return _read_sample(config, base)
    # As held-out data a file is not split.
    files = {"data": config.data, "eval_data": config.data, "allow_duplicates": True}
    task = load_task(data_settings(config, adapter, **files))
    notes = dict.fromkeys(note for note in task.notes if SHARED not in note)
    return _with_labels(replace(task, notes=tuple(notes)), config.labels)


def data_settings(config: ShrinkConfig, adapter: Adapter, **files: Any) -> DataConfig:
    """Return the settings of data: those of the request, but for the files."""
    columns = {name: value for name, value in vars(config).items() if name.endswith("_column")}
    task = _task_of(adapter) if config.task == "auto" else config.task
    return DataConfig(task=task, max_length=config.max_length, **columns, **files)


def _read_sample(config: ShrinkConfig, base: str) -> Task:
    """Return the sample's held-out and test examples, which a sweep on it does not train on."""
    is_sample = base == MINILM_HUB_ID or (
        Path(base).is_dir() and Path(base).resolve() == minilm_directory().resolve()
    )
    if not is_sample:
        raise RequestError(
            "data is missing: give held-out examples with --data, in the form of the training data "
            "and not part of it"
        )
    task = load_task(DataConfig(task=config.task))
    parts = [task.held_out, task.test]
    names = ("ids", "inputs", "labels")
    joined = {name: sum((getattr(part, name) for part in parts), ()) for name in names}
    return replace(task, held_out=replace(task.held_out, **joined))


def _task_of(adapter: Adapter) -> Any:
    """Return the task that an adapter's config and head imply, or ``auto``."""
    kind = adapter.config.get("task_type")
    if kind == "CAUSAL_LM":
        return "sft"
    if kind != "SEQ_CLS":
        return "auto"
    outputs = [
        len(tensor)
        for name, tensor in adapter.tensors.items()
        if name.endswith((".classifier.weight", ".score.weight", ".out_proj.weight"))
    ]
    return "regression" if outputs == [1] else "classification"


def _with_labels(task: Task, labels: Sequence[str]) -> Task:
    """Number the classes as a list of labels does."""
    if not labels:
        return task
    if not isinstance(task.objective, ClassificationObjective):
        raise RequestError("labels: only classification has classes; leave them out")
    known = task.objective.label_names
    if unknown := [name for name in known if name not in labels]:
        raise RequestError(
            f"labels {some(labels, 12)}: the data also have {some(unknown)}; name all classes"
        )
    index = {name: number for number, name in enumerate(labels)}
    numbers = tuple(index[known[label]] for label in task.held_out.labels)
    return replace(
        task,
        objective=ClassificationObjective(tuple(labels)),
        held_out=replace(task.held_out, labels=numbers),
    )


def encode_held_out(task: Task, base: "BaseModel", max_length: int | None) -> HeldOut:
    """Tokenise the held-out examples and put them into their fixed random order.

    Raises:
        RequestError: fewer than two examples have something to predict.
    """
    length = min(max_length or task.objective.max_length, base.max_length)
    encoded, shortened = base.encode(task, task.held_out, length)
    notes = [*task.notes, *task.notes_on(base.tokenizer)]
    if shortened:
        notes.append(f"{shortened} of {len(task.held_out)} texts were cut at {length} tokens")
    if lost := len(task.held_out) - len(encoded):
        notes.append(f"{lost} texts are left out: nothing to predict within {length} tokens")
    if len(encoded) < 2:
        raise RequestError(f"data: {len(encoded)} usable held-out examples; at least 2 are needed")
    order = np.random.default_rng(ORDER_SEED).permutation(len(encoded)).tolist()
    return HeldOut(task, encoded.take(order), tuple(notes))


def base_for(base: "BaseModel", adapter: Adapter, label: str) -> "BaseModel":
    """Return the base with the adapter's layers as targets.

    Raises:
        RequestError: the adapter does not fit the base; ``label`` names it.
    """
    modules = dict(base.model.named_modules())
    targets: dict[str, tuple[int, int]] = {}
    for pair in factor_pairs(adapter):
        layer = pair.layer if pair.experts == 1 else pair.layer.rpartition(".")[0]
        if layer not in modules:
            problem = f"has no layer {layer!r}"
            raise RequestError(f"{label} does not fit base {base.name!r}, which {problem}")
        sizes = _sizes(modules[layer])
        if pair.experts == 1 and sizes not in (None, (pair.d_in, pair.d_out)):
            raise RequestError(
                f"{label} does not fit base {base.name!r}: its layer {layer!r} is for "
                f"{pair.d_in} inputs and {pair.d_out} outputs, the base's has {sizes[0]} and "
                f"{sizes[1]}"
            )
        targets[pair.name] = (pair.d_in, pair.d_out)
    _check_head(base, adapter, label)
    return replace(base, targets=targets)


def _sizes(layer: Any) -> tuple[int, int] | None:
    """Return inputs and outputs of a linear layer; None for a layer of another kind."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D":
        return tuple(layer.weight.shape)
    return None


def _check_head(base: "BaseModel", adapter: Adapter, label: str) -> None:
    """Refuse an adapter without the head that the base lacks, or with one of another size."""
    for name in base.trained_in_full:
        for key, weight in base.model.get_submodule(name).state_dict().items():
            saved = adapter.tensors.get(f"{PEFT_PREFIX}{name}.{key}")
            if saved is None and name in base.newly_initialized:
                raise RequestError(
                    f"{label} has no weights of {name!r}, and neither has base {base.name!r}; name "
                    "the model with its head by --model, or another task by --task"
                )
            if saved is not None and saved.shape != weight.shape:
                raise RequestError(
                    f"{label}: its {name!r} has {len(saved)} outputs, the data's task needs "
                    f"{len(weight)}; name all classes in their order with --labels"
                )
