from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.planning.memory.devices import CPU
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.memory.setup import (
    logit_classes,
    longest_input,
    training_batch,
    training_model,
)
from rankwise.planning.prepare import prepare
from tests.tiny_models import request, write_config


@pytest.mark.parametrize(
    ("name", "settings", "shapes"),
    [
        ("llama", {}, {"input_ids": (4, 64), "labels": (4, 64)}),
        ("bert", {"task_type": "SEQ_CLS"}, {"input_ids": (4, 64), "labels": (4,)}),
        ("vit", {}, {"pixel_values": (4, 3, 64, 64), "labels": (4,)}),
        ("whisper", {}, {"input_features": (4, 16, 128), "labels": (4, 64)}),
    ],
)
def test_batch_has_the_inputs_of_the_task(
    name: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    prepared = prepare(request(write_config(tmp_path, name), **settings))
    batch = training_batch(prepared.skeleton, prepared.config)
    assert {key: tuple(tensor.shape) for key, tensor in batch.items()} == shapes
    assert all(tensor.is_meta for tensor in batch.values())


@pytest.mark.parametrize(
    ("name", "longest"),
    [("bert", 256), ("roberta", 256), ("opt", 256), ("gpt2", 256), ("llama", None)],
)
def test_longest_input_is_the_number_of_learned_positions(
    name: str, longest: int | None, tmp_path: Path
) -> None:
    skeleton = prepare(request(write_config(tmp_path, name))).skeleton
    assert longest_input(skeleton.meta.model) == longest


def test_batch_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    prepared = prepare(request(write_config(tmp_path, "bert"), seq_len=257))
    with pytest.raises(RequestError, match="at most 256"):
        training_batch(prepared.skeleton, prepared.config)


@pytest.mark.parametrize(("task_type", "classes"), [("CAUSAL_LM", 1000), ("SEQ_CLS", 2)])
def test_classes_of_the_logits(task_type: str, classes: int, tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), task_type=task_type)
    assert logit_classes(prepare(config).skeleton) == classes


def test_checkpointing_is_refused_where_the_model_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(request(write_config(tmp_path, "llama"), gradient_checkpointing=True))
    monkeypatch.setattr(
        type(prepared.skeleton.meta.model), "supports_gradient_checkpointing", False
    )
    with pytest.raises(RequestError, match="gradient_checkpointing"):
        training_model(prepared.skeleton, prepared.config, 8, DeviceKernels(CPU, "sdpa"))


def test_quantised_training_keeps_norms_in_fp32_and_trains_the_adapter_only(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), quantization="nf4", precision="bf16")
    skeleton = prepare(config).skeleton
    model = training_model(skeleton, config, 8, DeviceKernels(CPU, "sdpa"))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if "norm" in name:
            assert parameter.dtype is torch.float32
