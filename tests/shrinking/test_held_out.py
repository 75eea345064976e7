"""Held-out data of a request, and whether an adapter fits its base."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora.files import read_adapter
from rankwise.models.base_model import BaseModel, load_base
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.held_out import base_for, encode_held_out, read_held_out
from rankwise.tasks.losses import ClassificationObjective


def load(lm: Path) -> BaseModel:
    config = ShrinkConfig(adapters=(lm / "adapter",), data=lm / "held-out.jsonl")
    task = read_held_out(config, "base", read_adapter(lm / "adapter"))
    return load_base(str(lm / "base"), task.objective, "all-linear", [])


def test_every_row_is_held_out_and_their_order_is_random_but_fixed(lm: Path) -> None:
    config = ShrinkConfig(adapters=(lm / "adapter",), data=lm / "held-out.jsonl")
    task = read_held_out(config, "base", read_adapter(lm / "adapter"))
    assert task.objective.task_type == "CAUSAL_LM"
    assert len(task.held_out) == 160
    assert not any("training data" in note for note in task.notes)
    base = load(lm)
    first, second = (encode_held_out(task, base, None).encoded.ids for _ in range(2))
    assert first == second
    assert sorted(first) == list(range(160)) != list(first)


def test_labels_give_the_order_of_the_outputs(lm: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [f"film {i}" for i in range(6)], "label": list("bcbcbc")})
    table.to_csv(tmp_path / "data.csv", index=False)
    config = ShrinkConfig(
        adapters=(lm / "adapter",),
        data=tmp_path / "data.csv",
        task="classification",
        labels=("c", "a", "b"),
    )
    adapter = read_adapter(lm / "adapter")
    task = read_held_out(config, "base", adapter)
    assert isinstance(task.objective, ClassificationObjective)
    assert task.objective.label_names == ("c", "a", "b")
    assert task.held_out.labels == (2, 0, 2, 0, 2, 0)
    with pytest.raises(RequestError, match="the data also have c"):
        read_held_out(replace_labels(config, ("a", "b")), "base", adapter)


def replace_labels(config: ShrinkConfig, labels: tuple[str, ...]) -> ShrinkConfig:
    return ShrinkConfig(adapters=config.adapters, data=config.data, task=config.task, labels=labels)


def test_data_are_needed_unless_the_base_is_the_samples(lm: Path) -> None:
    config = ShrinkConfig(adapters=(lm / "adapter",))
    with pytest.raises(RequestError, match="data is missing"):
        read_held_out(config, str(lm / "base"), read_adapter(lm / "adapter"))


def test_an_adapter_of_another_base_is_refused(lm: Path) -> None:
    base, adapter = load(lm), read_adapter(lm / "adapter")
    assert set(base_for(base, adapter, "it").targets) == {
        f"model.layers.{block}.{name}"
        for block in (0, 1)
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    }
    elsewhere = {name.replace(".layers.1.", ".layers.7."): x for name, x in adapter.tensors.items()}
    with pytest.raises(RequestError, match=r"it does not fit base .* has no layer 'model.layers.7"):
        base_for(base, replace(adapter, tensors=elsewhere), "it")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    wider = {**adapter.tensors, name: torch.zeros(8, 50)}
    with pytest.raises(RequestError, match="is for 50 inputs and 32 outputs, the base's has 48"):
        base_for(base, replace(adapter, tensors=wider), "it")
