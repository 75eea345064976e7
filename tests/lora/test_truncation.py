import itertools
import math

import numpy as np
import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora import Adapter, grow, ranks_by_budget, ranks_by_energy, spectrum, truncate
from rankwise.lora.adapter import factor_pairs
from tests.lora.adapters import SIZES, make_adapter, products


def tail(delta: np.ndarray, rank: int) -> float:
    """The least Frobenius error of rank k (Eckart and Young 1936)."""
    return float(np.sqrt((np.linalg.svd(delta, compute_uv=False)[rank:] ** 2).sum()))


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"lora_alpha": 7}, {"alpha_pattern": {"q": 3}}]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_is_the_smallest_possible(rank: int, dtype: torch.dtype, settings: dict) -> None:
    adapter = make_adapter(6, dtype=dtype, **settings)
    before, after = products(adapter), products(truncate(spectrum(adapter), rank))
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    for name, delta in before.items():
        assert after[name].shape == delta.shape
        assert np.linalg.matrix_rank(after[name], tol=1e-4) == rank
        size = np.linalg.norm(delta)
        assert np.linalg.norm(after[name] - delta) == pytest.approx(
            tail(delta, rank), abs=rounding * size
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_only_once(dtype: torch.dtype) -> None:
    adapter = make_adapter(6, dtype=dtype)
    truncated = truncate(spectrum(adapter), 3)
    assert {tensor.dtype for tensor in truncated.tensors.values()} == {dtype}
    before, after = products(adapter), products(truncated)
    for name, delta in before.items():
        error, least = np.linalg.norm(after[name] - delta), tail(delta, 3)
        assert (
            least - 1e-9
            <= error
            < math.hypot(least, 2 * torch.finfo(dtype).eps * np.linalg.norm(delta))
        )


def test_scaling_stays_and_both_factors_have_the_same_norm() -> None:
    for settings, alpha in (
        ({}, 6),
        ({"use_rslora": True}, 12 * math.sqrt(3 / 6)),
        ({"lora_alpha": 6}, 3),
    ):
        adapter = make_adapter(6, **settings)
        truncated = truncate(spectrum(adapter), 3)
        assert truncated.config["r"] == 3
        assert truncated.config["lora_alpha"] == pytest.approx(alpha)
        assert isinstance(truncated.config["lora_alpha"], int) == (alpha in (6, 3))
        assert truncated.config["rank_pattern"] == truncated.config["alpha_pattern"] == {}
        for old, new in zip(factor_pairs(adapter), factor_pairs(truncated), strict=True):
            assert new.scaling == pytest.approx(old.scaling, rel=1e-15)
            torch.testing.assert_close(new.a.norm(dim=1), new.b.norm(dim=0))


def test_one_spectrum_serves_all_ranks_and_is_not_changed() -> None:
    adapter = make_adapter(6)
    copies = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    found = spectrum(adapter)
    by_rank = [truncate(found, rank) for rank in range(1, 7)]
    for rank, truncated in enumerate(by_rank, 1):
        again = truncate(spectrum(adapter), rank)
        assert all(torch.equal(truncated.tensors[name], again.tensors[name]) for name in copies)
        assert (truncated.config["r"], again.config) == (rank, truncated.config)
    for name, tensor in copies.items():
        assert torch.equal(adapter.tensors[name], tensor)
        assert torch.equal(by_rank[-1].tensors[name], tensor)  # the present rank: bit by bit
    # Truncation in two steps gives the same as in one.
    twice, once = products(truncate(spectrum(by_rank[3]), 2)), products(by_rank[1])
    for name, delta in once.items():
        np.testing.assert_allclose(twice[name], delta, atol=1e-10)


def test_tensors_that_require_gradients_are_truncated_without_their_graph() -> None:
    adapter = make_adapter(6)
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in adapter.tensors.items()}
    training = Adapter(parameters, adapter.config)
    for resized in (truncate(spectrum(training), 2), grow(training, 8)):
        assert not any(tensor.requires_grad for tensor in resized.tensors.values())


def test_other_tensors_and_settings_are_kept() -> None:
    adapter = make_adapter(6)
    head = torch.randn(3, 24)
    more = {
        "base_model.model.score.weight": head,
        "base_model.model.h.0.q.lora_B.bias": torch.ones(24),
    }
    truncated = truncate(
        spectrum(Adapter({**adapter.tensors, **more}, {**adapter.config, "bias": "none"})), 2
    )
    assert all(truncated.tensors[name] is tensor for name, tensor in more.items())
    assert truncated.config["target_modules"] == ["q", "v"]
    assert truncated.config["bias"] == "none"


def test_layers_below_the_rank_stay_as_they_are() -> None:
    adapter = make_adapter(6, rank_pattern={"h.1.q": 2})
    truncated = truncate(spectrum(adapter), 4)
    assert {pair.name: pair.rank for pair in factor_pairs(truncated)} == {
        "h.0.q": 4,
        "h.0.v": 4,
        "h.1.q": 2,
        "h.10.q": 4,
    }
    assert torch.equal(
        *(one.tensors["base_model.model.h.1.q.lora_A.weight"] for one in (adapter, truncated))
    )


@pytest.mark.parametrize("zero_b", [False, True])
def test_directions_without_effect_keep_a_gradient(zero_b: bool) -> None:
    adapter = make_adapter(6, {"q": (24, 24)})
    b = adapter.tensors["base_model.model.q.lora_B.weight"]
    b[:, 0 if zero_b else 2 :] = 0
    pair = factor_pairs(truncate(spectrum(adapter), 4))[0]
    live = 0 if zero_b else 2
    np.testing.assert_allclose(
        products(truncate(spectrum(adapter), 4))["q"], products(adapter)["q"], atol=1e-12
    )
    assert (pair.b[:, live:] == 0).all()
    torch.testing.assert_close(
        pair.a[live:].norm(dim=1), torch.full((4 - live,), 3**-0.5, dtype=torch.float64)
    )


def test_a_layer_smaller_than_the_rank_is_filled_with_zeros() -> None:
    adapter = make_adapter(20)
    np.testing.assert_allclose(
        products(truncate(spectrum(adapter), 15))["h.0.v"], products(adapter)["h.0.v"], atol=1e-11
    )


def test_each_layer_gets_the_smallest_rank_that_keeps_the_energy() -> None:
    adapter = make_adapter(6)
    found = spectrum(adapter)
    for energy in (0.1, 0.5, 0.9, 0.99):
        for name, rank in ranks_by_energy(found, energy).items():
            delta = products(adapter)[name]
            total = np.linalg.norm(delta) ** 2
            assert 1 - tail(delta, rank) ** 2 / total >= energy
            assert rank == 1 or 1 - tail(delta, rank - 1) ** 2 / total < energy
    assert set(ranks_by_energy(found, 1).values()) == {6}
    assert set(ranks_by_energy(found, 1e-9).values()) == {1}


def cost(ranks: dict[str, int], sizes: dict[str, tuple[int, int]] = SIZES) -> int:
    return sum(rank * sum(sizes[name]) for name, rank in ranks.items())


def test_a_budget_is_shared_by_energy() -> None:
    sizes = {"a.q": (10, 10), "b.q": (10, 10), "c.q": (10, 10)}
    adapter = make_adapter(4, sizes)
    adapter.tensors["base_model.model.b.q.lora_B.weight"].mul_(3)
    found = spectrum(adapter)
    for budget in (60, 100, 119, 160, 240, 1000):
        ranks = ranks_by_budget(found, budget)
        assert cost(ranks, sizes) <= budget
        choices = [
            dict(zip(sizes, each, strict=True)) for each in itertools.product(range(1, 5), repeat=3)
        ]
        best = max(found.energy_at(each) for each in choices if cost(each, sizes) <= budget)
        assert found.energy_at(ranks) == pytest.approx(best)
    assert ranks_by_budget(found, 100)["b.q"] == 3
    truncated = truncate(found, ranks_by_budget(found, 100))
    assert truncated.config["r"] == 3
    assert truncated.config["rank_pattern"] == {"a.q": 1, "b.q": 3, "c.q": 1}
    assert truncated.config["alpha_pattern"] == {"a.q": 2, "b.q": 6, "c.q": 2}


def test_a_budget_is_never_worse_than_one_rank_for_all_layers() -> None:
    found = spectrum(make_adapter(6))
    for rank in range(
        1, 7
    ):  # with these few layers of two sizes the greedy way alone falls short at rank 3
        uniform = dict.fromkeys(SIZES, rank)
        assert (
            found.energy_at(ranks_by_budget(found, cost(uniform)))
            >= found.energy_at(uniform) - 1e-12
        )


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (0, "rank 0: allowed is a whole number, at least 1 and at most 6"),
        (7, "at most 6"),
        (2.5, "rank 2.5"),
        ("many", "rank 'many'"),
        ({"h.0.q": 1}, "rank of 'h.0.v' is missing"),
        ({"h.1.k": 1}, "no such layer (did you mean 'h.1.q'?)"),
        (dict.fromkeys(SIZES, 9), "rank of h.0.q 9"),
    ],
)
def test_a_wrong_rank_is_refused(rank: object, words: str) -> None:
    with pytest.raises(RequestError) as error:
        truncate(spectrum(make_adapter(6)), rank)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_a_wrong_energy_or_budget_is_refused() -> None:
    found = spectrum(make_adapter(6))
    for energy in (0, 1.1, -1, math.nan, "all", True):
        with pytest.raises(RequestError, match="energy"):
            ranks_by_energy(found, energy)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"did you mean 0\.95"):
        ranks_by_energy(found, 95)
    with pytest.raises(RequestError, match="rank 1 in every layer takes 180"):
        ranks_by_budget(found, 179)
