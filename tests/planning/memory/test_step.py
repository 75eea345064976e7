"""Predictions against real training steps on the CPU, measured by live bytes."""

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.planning import repeated_blocks as blocks
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import find_device
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.planner import Planner
from rankwise.planning.prepare import prepare
from tests.tiny_models import (
    ARCHITECTURES,
    HYBRIDS,
    MULTIMODAL,
    SHARED,
    VISION_LANGUAGE,
    measured_peak,
    real_model,
    request,
    write_config,
)

ALIKE = ("roberta", "mistral", "qwen2", "phi", "mt5", "smolvlm", "mistral3", "qwen2_5_vl")
"""Architectures whose blocks resemble those of another one here."""


def marked(names: Iterable[str], slow: Container[str]) -> list[Any]:
    """Mark some cases as slow."""
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(name, marks=marks[name in slow]) for name in names]


def planner(config: PlanConfig) -> Planner:
    return Planner(prepare(config).skeleton, config, find_device(config.device))


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS"])
def test_multimodal_models_are_predicted(name: str, task_type: str, tmp_path: Path) -> None:
    config = request(
        write_config(tmp_path, name), task_type=task_type, target_modules=r".*\.(q_proj|up_proj)"
    )
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", marked([*VISION_LANGUAGE, *HYBRIDS, *SHARED], ALIKE))
def test_models_for_images_and_hybrids_are_predicted(name: str, tmp_path: Path) -> None:
    config = prepare(request(write_config(tmp_path, name), target_modules=None)).config
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


def test_classifiers_with_alternating_attention_are_predicted(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "gemma2"), task_type="SEQ_CLS")
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", marked(ARCHITECTURES, ALIKE))
def test_every_architecture_is_predicted(name: str, tmp_path: Path) -> None:
    config = request(write_config(tmp_path, name))
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"attention": "eager"}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"gradient_checkpointing": True, "precision": "bf16", "attention": "eager"}),
        ("gpt2", {"gradient_checkpointing": True, "seq_len": 128}),
        ("llama", {"use_dora": True}),
        ("llama", {"lora_dropout": 0.1}),
        ("llama", {"modules_to_save": "lm_head", "target_modules": "q_proj"}),
        ("llama", {"modules_to_save": "embed_tokens,lm_head", "precision": "bf16"}),
        ("bert", {"bias": "all"}),
        ("mixtral", {"gradient_checkpointing": True}),
        ("llama", {"quantization": "nf4"}),
        ("llama", {"quantization": "nf4", "use_dora": True}),
        ("llama", {"quantization": "nf4-dq", "precision": "bf16", "gradient_checkpointing": True}),
        ("gpt2", {"quantization": "nf4"}),
        ("bert", {"quantization": "nf4"}),
        ("llama", {"quantization": "int8"}),
    ],
    ids=str,
)
def test_settings_are_predicted(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = request(write_config(tmp_path, name), **settings)
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=str)
def test_gradients_summed_over_parts_of_a_batch_are_predicted(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The second part finds the gradients of the first, and adds its own to them."""
    config = request(write_config(tmp_path, "llama"), batch_size=1, seq_len=32, **settings)
    rank = 64  # whose gradients are large beside the activations
    measured = measured_peak(real_model(config, tmp_path, rank), config, parts=2)
    prepared = prepare(config)
    whole, part = (
        Planner(prepared.skeleton, config, find_device("cpu"), accumulates=is_split).memory(rank)
        for is_split in (False, True)
    )
    assert part.peak_allocated == pytest.approx(measured, rel=0.01)
    assert whole.peak_allocated != pytest.approx(measured, rel=0.01)
    assert part.peak_eval == whole.peak_eval


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"quantization": "nf4-dq", "precision": "bf16", "gradient_checkpointing": True}),
        ("llama", {"quantization": "int8", "precision": "bf16"}),
        ("gpt2", {"precision": "bf16"}),
        ("bert", {"attention": "eager"}),
        *(
            pytest.param(name, settings, marks=pytest.mark.slow)
            for name, settings in [
                ("llama", {"precision": "bf16"}),
                ("llama", {"gradient_checkpointing": True}),
                ("llama", {"quantization": "nf4"}),
                ("llama", {"use_dora": True}),
                ("llama", {"modules_to_save": "lm_head", "target_modules": "q_proj"}),
                ("t5", {}),
                ("mixtral", {"precision": "bf16", "gradient_checkpointing": True}),
                ("gemma2", {}),
                ("whisper", {}),
            ]
        ),
    ],
    ids=str,
)
def test_a_loop_with_autocast_is_predicted(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = request(write_config(tmp_path, name), autocast=True, **settings)
    measured = measured_peak(real_model(config, tmp_path, 8), config)
    assert planner(config).memory(8).peak_allocated == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"gradient_checkpointing": True, "quantization": "nf4"}),
        ("gemma2", {}),
        ("llama", {"gradient_checkpointing": True, "autocast": True}),
        ("t5", {}),
        ("gpt2", {"target_modules": r".*h\.[0-4]\.attn\.c_attn"}),
        ("mixtral", {"device": "A100-80GB", "precision": "bf16"}),
    ],
    ids=str,
)
def test_shortened_model_needs_what_the_whole_model_needs(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {"num_hidden_layers": 14, "n_layer": 14, "num_layers": 9, "num_decoder_layers": 7}
    config = request(write_config(tmp_path, name, **deep), **settings)
    shortened = planner(config)
    assert shortened.skeleton.stacks
    monkeypatch.setattr(blocks, "MIN_STACK", 1000)
    whole = planner(config)
    assert not whole.skeleton.stacks
    assert shortened.memory(8) == whole.memory(8)


def test_interpolated_steps_equal_traced_steps(tmp_path: Path) -> None:
    config = request(
        write_config(tmp_path, "qwen2"), device="T4", attention="eager", precision="fp16"
    )
    one = planner(config)
    by_rank, by_batch, by_length = one.over_ranks(2, 64), one.over_batches(8), one.over_lengths(8)
    for rank in (3, 37, 100):
        assert by_rank(rank) == one.memory(rank)
    for size in (1, 7, 100):
        assert by_batch(size) == one.memory(8, batch_size=size)
    for length in (512, 1280):
        assert by_length(length) == one.memory(8, seq_len=length)


def test_each_adapter_parameter_takes_16_bytes(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"))
    one = planner(config)
    low, high = one.memory(8), one.memory(32)
    params = (
        (32 - 8) * 6 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))
    )  # q, o; k, v; gate, up, down

    def adapter_bytes(memory: StepMemory) -> int:
        return memory.adapter + memory.gradients + memory.optimizer

    assert adapter_bytes(high) - adapter_bytes(low) == 16 * params
    # So does the real peak at the end of the backward pass: few tokens have few activations.
    config = request(config.model, batch_size=1, seq_len=2)
    real = [measured_peak(real_model(config, tmp_path, rank), config) for rank in (128, 256)]
    sizes = [
        sum(p.numel() for p in real_model(config, tmp_path, r).parameters() if p.requires_grad)
        for r in (128, 256)
    ]
    planned = planner(config)
    slope = (planned.memory(256).peak_allocated - planned.memory(128).peak_allocated) / (
        sizes[1] - sizes[0]
    )
    assert slope == pytest.approx((real[1] - real[0]) / (sizes[1] - sizes[0]), rel=1e-3)
    assert slope == pytest.approx(16, rel=0.02)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_parts_add_up_to_the_peak(quantization: str, tmp_path: Path) -> None:
    settings = {"device": "T4", "precision": "fp16", "quantization": quantization}
    memory = planner(request(write_config(tmp_path, "llama"), **settings)).memory(8)
    parts = (
        memory.weights,
        memory.adapter,
        memory.gradients,
        memory.optimizer,
        memory.activations,
        memory.logits,
    )
    assert sum(parts) == memory.peak_allocated == sum(memory.at_peak.values())
    assert all(part >= 0 for part in parts)
    assert memory.peak_eval < memory.peak_allocated
    assert memory.context > 0
    assert (memory.largest_dequantized > 0) == (quantization == "nf4")


def test_activations_that_a_step_keeps_do_not_read_0(tmp_path: Path) -> None:
    """With checkpointing, few tokens and a high rank gradients take over more than is kept."""
    config = request(
        write_config(tmp_path, "llama"), gradient_checkpointing=True, batch_size=1, precision="bf16"
    )
    by_rank = planner(config).by_rank((4, 8, 16, 32, 64))
    taken_over = [
        memory.gradients - memory.at_peak["gradients"] > memory.at_peak["activations"]
        for memory in by_rank.values()
    ]
    assert any(taken_over)
    for memory in by_rank.values():
        assert memory.at_peak["activations"] > 0
        assert memory.activations > 0
        assert memory.logits > 0


def test_evaluation_peak_equals_that_of_a_forward_pass(tmp_path: Path) -> None:
    from rankwise.engine.peak_memory import peak_live_bytes

    config = request(write_config(tmp_path, "llama"))
    model = real_model(config, tmp_path, 8).eval()
    tokens = torch.ones(4, 64, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": tokens.clone()}

    def step() -> None:
        with torch.no_grad():
            model(**batch)

    measured = peak_live_bytes(step, [*model.parameters(), *model.buffers(), *batch.values()])
    memory = planner(config).memory(8)
    assert memory.peak_eval - memory.optimizer == pytest.approx(measured, rel=0.01)


def test_frozen_base_is_counted_once(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "qwen2"))
    model: nn.Module = real_model(config, tmp_path, 8)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad) + sum(
        b.nbytes for b in model.buffers()
    )
    assert planner(config).memory(8).weights == frozen
