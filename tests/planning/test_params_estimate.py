import pytest

from rankwise import estimate_lora_params
from rankwise.errors import RequestError
from rankwise.planning.params_estimate import adapter_params


def test_published_llama_2_7b_count() -> None:
    # Llama-2 7B, r=8 on q_proj and v_proj: 4,194,304 (torchtune's LoRA tutorial; PEFT print_trainable_parameters).
    assert estimate_lora_params(4096, 8, 32, modules_per_layer=2) == 4_194_304


def test_published_llama_2_7b_all_linear_count() -> None:
    # The same model, r=16 on all linear layers: 39,976,960 (PEFT print_trainable_parameters).
    attention, mlp = (4096, 4096), (4096, 11008)
    assert 32 * adapter_params([attention] * 4 + [mlp] * 3, 16) == 39_976_960


def test_the_total_is_over_layers_of_both_factors() -> None:
    for rank in (4, 8, 16, 32):
        assert estimate_lora_params(4096, rank) == 32 * (4096 * rank + rank * 4096)
    assert isinstance(estimate_lora_params(64, 2, 3), int)


def test_whole_numbers_written_otherwise_count_the_same() -> None:
    assert estimate_lora_params("4096", "8", 32.0, modules_per_layer="2") == 4_194_304  # type: ignore[arg-type]


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
def test_sizes_that_cannot_be(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        estimate_lora_params(*arguments)
