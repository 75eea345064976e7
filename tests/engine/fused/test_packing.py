import pytest
import torch

from rankwise.engine.fused.packing import Packing, current_packing, masked_score, packed


def test_blocks_contain_little_padding() -> None:
    packing = Packing([[0] * length for length in range(1, 200)])
    assert packing.tokens == sum(range(1, 200))
    assert packing.places <= packing.tokens / 0.75
    assert len(packing.blocks) < 20


def test_equal_lengths_need_no_padding_and_one_block() -> None:
    packing = Packing([[1, 2, 3]] * 5)
    assert (packing.places, len(packing.blocks), packing.key_masks) == (15, 1, [None])


def test_tokens_lie_end_to_end() -> None:
    packing = Packing([[5, 6, 7], [8], [9, 4]])
    assert packing.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packing.first.tolist() == [0, 3, 4]
    assert packing.last.tolist() == [2, 3, 5]


@pytest.mark.parametrize("heads", [1, 3])
def test_rows_go_into_blocks_and_come_back(heads: int) -> None:
    packing = Packing([[0] * length for length in (3, 11, 5, 5, 1, 12, 7, 30)])
    index = packing.by_head(heads)
    rows = torch.arange(packing.tokens * heads)
    in_blocks = rows[index.source]
    assert len(in_blocks) == packing.places * heads
    assert torch.equal(in_blocks[index.place], rows)
    assert len(index.empty) == (packing.places - packing.tokens) * heads
    assert not set(index.empty.tolist()) & set(index.place.tolist())


def test_masked_scores_stay_finite_when_added_three_times() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        score = torch.tensor(masked_score(dtype), dtype=dtype)
        assert torch.isfinite(score + score + score)
        assert torch.tensor([0.0, float(score)]).softmax(0)[1] == 0


def test_a_packing_holds_inside_its_with_block_only() -> None:
    outer, inner = Packing([[1]]), Packing([[1], [2]])
    with packed(outer):
        with packed(inner):
            assert current_packing() is inner
        assert current_packing() is outer
    with pytest.raises(LookupError):
        current_packing()


def test_bounds_are_those_that_varlen_attention_takes() -> None:
    packing = Packing([[5, 6, 7], [8], [9, 4]])
    assert packing.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.longest == 3


def test_a_packing_made_ahead_moves_as_a_whole() -> None:
    packing = Packing([[5, 6, 7], [8]])
    assert packing.to("meta") is packing
    moved = (packing.input_ids, packing.position_ids, packing.first, packing.cu_seqlens)
    assert {tensor.device.type for tensor in moved} == {"meta"}
