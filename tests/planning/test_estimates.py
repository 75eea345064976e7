import pytest

from rankwise import estimate_training_memory
from rankwise.errors import RequestError

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
    # Korthikanti et al. 2022, section 4.1: for GPT-3 (a = 96, s = 2048, h = 12288), 5 a s / h = 80, so a layer keeps
    # s b h (34 + 80) bytes.
    estimate = estimate_training_memory(
        8, 12288, 96, "fp16", batch_size=1, seq_len=2048, num_heads=96, fused_attention=False
    )
    assert estimate["activations_bytes"] == 96 * 2048 * 12288 * 114


def test_activations_grow_with_batch_and_length() -> None:
    def activations(**sizes: object) -> float:
        return estimate_training_memory(8, 64, 2, "bf16", **sizes)["activations_bytes"]  # type: ignore[arg-type]

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
    # QLoRA (Dettmers et al. 2023, section 3): 4 bits, and 32 bits for each block of 64, are 4.5 bits a weight.
    assert estimate["weights_bytes"] == estimate["base_params"] * 4.5 / 8


def test_compression_against_full_fine_tuning() -> None:
    estimate = estimate_training_memory(8, 4096, 32, "bf16", seq_len=1)
    assert estimate["compression"] == 12 * 4096**2 / (2 * 4096 * 8)
    assert (
        estimate["full_finetuning_bytes"] - estimate["activations_bytes"]
        == 16 * estimate["base_params"]
    )
    assert estimate["memory_ratio"] > 7  # 16 bytes a weight against 2


def test_whole_numbers_written_otherwise_count_the_same() -> None:
    text = estimate_training_memory("8", "4096", "32", batch_size="2", seq_len="64")  # type: ignore[arg-type]
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
def test_values_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        estimate_training_memory(**{"rank": 8, **settings})  # type: ignore[arg-type]
