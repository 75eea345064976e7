from typing import Any

import pytest

from rankwise import estimate_lora_params, estimate_training_memory
from rankwise.errors import RequestError
from rankwise.planning.estimates import adapter_params

GIB = 2**30


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "nf4"])
def test_each_trained_parameter_takes_sixteen_bytes(precision: str) -> None:
    # ZeRO (Rajbhandari et al. 2020, section 3.1): 2 + 2 + 12 in mixed precision; 4 + 4 + 8 in fp32.
    one = estimate_training_memory(8, precision=precision)  # type: ignore[arg-type]
    two = estimate_training_memory(16, precision=precision)  # type: ignore[arg-type]
    assert two["lora_params"] == 2 * one["lora_params"]
    assert two["total_bytes"] - one["total_bytes"] == 16 * one["lora_params"]


def test_parts_add_up_and_moments_are_in_fp32() -> None:
    estimate = estimate_training_memory(8, precision="fp32")
    parts = ("weights", "adapter", "gradients", "optimizer", "activations")
    assert estimate["total_bytes"] == sum(estimate[f"{part}_bytes"] for part in parts)
    assert estimate["optimizer_bytes"] == 2 * 4 * estimate["lora_params"]
    mixed = estimate_training_memory(8, precision="bf16")
    assert mixed["optimizer_bytes"] == (2 * 4 + 4) * mixed["lora_params"]
    assert mixed["gradients_bytes"] == 2 * mixed["lora_params"]


def test_published_activations_of_gpt_3_sized_layers() -> None:
    # Korthikanti et al. 2022, section 4.1: for GPT-3 (a = 96, s = 2048, h = 12288), 5 a s / h = 80,
    # so a layer keeps s b h (34 + 80) bytes.
    estimate = estimate_training_memory(
        8, 12288, 96, "fp16", batch_size=1, seq_len=2048, num_heads=96, fused_attention=False
    )
    assert estimate["activations_bytes"] == 96 * 2048 * 12288 * 114


def test_activations_grow_with_batch_and_length() -> None:
    def activations(**sizes: object) -> float:
        estimate = estimate_training_memory(8, 64, 2, "bf16", **sizes)  # type: ignore[arg-type]
        return estimate["activations_bytes"]

    base = activations(batch_size=2, seq_len=128)
    assert activations(batch_size=4, seq_len=128) == 2 * base
    assert activations(batch_size=2, seq_len=256) == 2 * base
    eager = {"num_heads": 4, "fused_attention": False}
    assert activations(batch_size=2, seq_len=256, **eager) > 2 * activations(
        batch_size=2, seq_len=128, **eager
    )
    assert activations(batch_size=2, seq_len=128, gradient_checkpointing=True) < base


def test_four_bit_weights() -> None:
    estimate = estimate_training_memory(8, precision="nf4")
    # QLoRA (Dettmers et al. 2023, section 3): 4 bits and 32 for each 64 weights: 4.5 bits a weight.
    assert estimate["weights_bytes"] == estimate["base_params"] * 4.5 / 8


def test_compression_against_full_fine_tuning() -> None:
    estimate = estimate_training_memory(8, 4096, 32, "bf16", seq_len=1)
    assert estimate["compression"] == 12 * 4096**2 / (2 * 4096 * 8)
    assert (
        estimate["full_finetuning_bytes"] - estimate["activations_bytes"]
        == 16 * estimate["base_params"]
    )
    assert estimate["memory_ratio"] > 7  # 16 bytes a weight against 2


def test_memory_accepts_whole_numbers_as_text() -> None:
    sizes: Any = {"layer_dim": "4096", "num_layers": "32", "batch_size": "2", "seq_len": "64"}
    text = estimate_training_memory("8", **sizes)  # type: ignore[arg-type]
    assert text == estimate_training_memory(8, 4096, 32, batch_size=2, seq_len=64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "bf61"}, "'bf61'.*did you mean 'bf16'"),
        ({"rank": 0}, "rank 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seq_len": -1}, "seq_len -1"),
        ({"modules_per_layer": 13}, "modules_per_layer 13"),
    ],
)
def test_impossible_values_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        estimate_training_memory(**{"rank": 8, **settings})  # type: ignore[arg-type]


def test_published_llama_2_7b_count() -> None:
    # Llama-2 7B, r=8 on q_proj and v_proj (torchtune's LoRA tutorial; print_trainable_parameters).
    assert estimate_lora_params(4096, 8, 32, modules_per_layer=2) == 4_194_304


def test_published_llama_2_7b_all_linear_count() -> None:
    # The same model, r=16 on all linear layers: 39,976,960 (PEFT print_trainable_parameters).
    attention, mlp = (4096, 4096), (4096, 11008)
    assert 32 * adapter_params([attention] * 4 + [mlp] * 3, 16) == 39_976_960


def test_count_covers_both_factors_in_all_layers() -> None:
    for rank in (4, 8, 16, 32):
        assert estimate_lora_params(4096, rank) == 32 * (4096 * rank + rank * 4096)
    assert isinstance(estimate_lora_params(64, 2, 3), int)


def test_counts_accept_whole_numbers_as_text() -> None:
    count: Any = estimate_lora_params
    assert count("4096", "8", 32.0, modules_per_layer="2") == 4_194_304


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4096, 0), "rank 0: allowed is a whole number, at least 1 and at most 4096"),
        ((16, 17), "rank 17.*at most 16"),
        ((4096, 2.5), "rank 2.5"),
        ((0, 8), "layer_dim 0"),
        ((4096, 8, 0), "num_layers 0"),
    ],
)
def test_impossible_sizes_of_an_adapter_are_refused(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        estimate_lora_params(*arguments)
