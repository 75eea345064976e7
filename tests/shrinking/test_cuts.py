"""Truncations of one adapter."""

from pathlib import Path

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, factor_pairs
from rankwise.shrinking.cuts import (
    common_base,
    decompose,
    make_cuts,
    make_per_layer_cuts,
    ranks_below,
    without_update,
)
from tests.shrinking.adapters import save_adapter


def test_ranks_are_powers_of_two_below_or_those_asked_for() -> None:
    assert ranks_below(32, None) == [16, 8, 4, 2, 1]
    assert ranks_below(12, None) == [8, 4, 2, 1]
    assert ranks_below(1, None) == []
    assert ranks_below(16, (3, 12, 16, 64)) == [12, 3]


def test_cuts_have_their_rank_and_per_layer_cuts_no_more_entries(lm: Path) -> None:
    decomposed = decompose(lm / "adapter")
    cuts = make_cuts(decomposed, [4, 2])
    assert [{pair.rank for pair in factor_pairs(cut.adapter)} for cut in cuts] == [{4}, {2}]
    for cut, shared in zip(cuts, make_per_layer_cuts(decomposed, cuts), strict=True):
        assert shared.params <= cut.params
        assert shared.rank == cut.rank and shared.per_layer
        ranks = {pair.name: pair.rank for pair in factor_pairs(shared.adapter)}
        uniform = dict.fromkeys(ranks, cut.rank)
        assert decomposed.energy_at(ranks) >= decomposed.energy_at(uniform)


def test_the_adapter_without_its_update_adds_nothing(lm: Path) -> None:
    empty = without_update(decompose(lm / "adapter"))
    assert all(bool((pair.b == 0).all()) for pair in factor_pairs(empty.adapter))


def test_dora_is_refused_by_name(lm: Path, tmp_path: Path) -> None:
    path = save_adapter(lm / "base", tmp_path / "dora", steps=1, use_dora=True)
    with pytest.raises(RequestError, match="is DoRA, which rescales the sum"):
        decompose(path)


def test_bases_must_be_named_and_agree() -> None:
    tensors = {"x": torch.zeros(1)}
    one = Adapter(tensors, {"base_model_name_or_path": "a/one"})
    two = Adapter(tensors, {"base_model_name_or_path": "a/two"})
    assert common_base([Path("p")], [one]) == "a/one"
    with pytest.raises(RequestError, match="different base models"):
        common_base([Path("p"), Path("q")], [one, two])
    with pytest.raises(RequestError, match="name it with --model"):
        common_base([Path("p")], [Adapter(tensors, {})])
