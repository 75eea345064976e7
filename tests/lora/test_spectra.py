import math

import numpy as np
import pytest
import torch

from rankwise.lora import spectrum
from tests.lora.adapters import make_adapter, product


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"lora_alpha": -3}, {"alpha_pattern": {"1.q": 5}}]
)
@pytest.mark.parametrize("rank", [1, 6, 12, 20])  # 20 is more than h.0.v has outputs
def test_singular_values_match_those_of_the_whole_delta_w(rank: int, settings: dict) -> None:
    found = spectrum(make_adapter(rank, **settings))
    assert [layer.pair.name for layer in found.layers] == ["h.0.q", "h.0.v", "h.1.q", "h.10.q"]
    for layer in found.layers:
        truth = np.linalg.svd(product(layer.pair), compute_uv=False)
        values = layer.singular_values.numpy()
        assert len(values) == min(rank, *layer.pair.b.shape, *layer.pair.a.shape)
        np.testing.assert_allclose(values, truth[: len(values)], rtol=1e-12)
        assert (truth[len(values) :] < 1e-12 * truth[0]).all()
        assert layer.norm == pytest.approx(np.linalg.norm(product(layer.pair)), rel=1e-12)
        m = len(values)
        torch.testing.assert_close(layer.left.T @ layer.left, torch.eye(m, dtype=torch.float64))
        torch.testing.assert_close(layer.right @ layer.right.T, torch.eye(m, dtype=torch.float64))
        whole = layer.left @ torch.diag(layer.values) @ layer.right
        np.testing.assert_allclose(
            layer.pair.scaling * whole.numpy(), product(layer.pair), atol=1e-12 * truth[0]
        )


def test_figures_match_their_definitions() -> None:
    for layer in spectrum(make_adapter(6)).layers:
        values = np.linalg.svd(product(layer.pair), compute_uv=False)[:6]
        shares = values / values.sum()
        assert layer.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
        assert layer.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
        energy = np.cumsum(values**2) / (values**2).sum()
        np.testing.assert_allclose(layer.energy.numpy(), energy)
        for share in (0.3, 0.9, 0.99, 1.0):
            assert layer.rank_for(share) == min(int(np.searchsorted(energy, share - 1e-12)) + 1, 6)


def test_a_layer_uses_its_rank_if_its_singular_values_are_equal() -> None:
    adapter = make_adapter(4, {"q": (8, 8)})
    a, b = adapter.tensors.values()
    a.copy_(torch.eye(8)[:4])
    b.copy_(torch.eye(8)[:, 4:])
    layer = spectrum(adapter).layers[0]
    assert (layer.effective_rank, layer.stable_rank) == (pytest.approx(4), pytest.approx(4))
    assert layer.uses_rank
    b[:, 1:] = 0
    layer = spectrum(adapter).layers[0]
    assert (layer.effective_rank, layer.stable_rank, layer.rank_for(1.0)) == (
        pytest.approx(1),
        pytest.approx(1),
        1,
    )
    assert not layer.uses_rank


def test_the_figures_of_an_untrained_adapter_are_zero() -> None:
    adapter = make_adapter(4, {"q": (8, 8)})
    adapter.tensors["base_model.model.q.lora_B.weight"].zero_()
    found = spectrum(adapter)
    layer = found.layers[0]
    assert (layer.norm, layer.effective_rank, layer.stable_rank, layer.uses_rank) == (
        0,
        0,
        0,
        False,
    )
    assert layer.energy.tolist() == [1, 1, 1, 1]
    assert found.energy_at({"q": 1}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_factors_are_decomposed_in_float64(dtype: torch.dtype) -> None:
    for layer in spectrum(make_adapter(6, dtype=dtype)).layers:
        truth = np.linalg.svd(product(layer.pair), compute_uv=False)[:6]
        np.testing.assert_allclose(layer.singular_values.numpy(), truth, rtol=1e-12)
        assert layer.left.dtype == torch.float32
