import numpy as np
import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora.overlap import overlaps, subspace_similarity
from tests.lora.adapters import make_adapter


def test_similarity_matches_the_equation_in_the_paper() -> None:
    generator = np.random.default_rng(0)
    a1, a2 = generator.normal(size=(3, 10)), generator.normal(size=(5, 10))
    found = subspace_similarity(torch.tensor(a1), torch.tensor(a2))
    u1, u2 = (
        np.linalg.svd(a, full_matrices=False)[2].T for a in (a1, a2)
    )  # right singular vectors
    for i in range(1, 4):
        for j in range(1, 6):
            phi = np.linalg.norm(u1[:, :i].T @ u2[:, :j]) ** 2 / min(i, j)
            assert float(found[i - 1, j - 1]) == pytest.approx(phi, rel=1e-12)


def test_equal_subspaces_have_similarity_one_and_orthogonal_ones_zero() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    weights = torch.arange(4, 0, -1)[:, None]
    same = subspace_similarity(weights * eye[:4], weights * eye[:4])
    torch.testing.assert_close(same, torch.ones_like(same))
    assert (subspace_similarity(eye[:4], eye[4:]) == 0).all()


def test_shared_directions_are_counted() -> None:
    first, second = make_adapter(4, {"q": (16, 12)}), make_adapter(3, {"q": (16, 12)}, seed=1)
    eye = torch.eye(16, dtype=torch.float64)
    first.tensors["base_model.model.q.lora_A.weight"].copy_(eye[[0, 1, 2, 3]])
    second.tensors["base_model.model.q.lora_A.weight"].copy_(5 * eye[[2, 3, 9]])
    second.tensors["base_model.model.q.lora_B.weight"].zero_()
    layer = overlaps(first, second)[0]
    assert (layer.shared_inputs, layer.chance_inputs) == (pytest.approx(2), 4 * 3 / 16)
    assert (layer.shared_outputs, layer.chance_outputs) == (0, 0)
    assert layer.similarity.shape == (4, 3)


def test_random_adapters_share_as_much_as_chance_predicts() -> None:
    sizes = {f"{i}.q": (40, 30) for i in range(40)}
    layers = overlaps(make_adapter(6, sizes), make_adapter(5, sizes, seed=1))
    assert np.mean([layer.shared_inputs for layer in layers]) == pytest.approx(6 * 5 / 40, rel=0.1)
    assert np.mean([layer.shared_outputs for layer in layers]) == pytest.approx(6 * 5 / 30, rel=0.1)
    assert layers[0].chance_inputs == 6 * 5 / 40
    again = overlaps(make_adapter(6, sizes), make_adapter(6, sizes))
    assert all(layer.shared_outputs == pytest.approx(6) for layer in again)


def test_adapters_of_other_models_are_refused() -> None:
    with pytest.raises(RequestError, match="no layer in common"):
        overlaps(make_adapter(2, {"q": (8, 8)}), make_adapter(2, {"k": (8, 8)}))
    with pytest.raises(RequestError, match="8 -> 8 in the first adapter and 9 -> 8"):
        overlaps(make_adapter(2, {"q": (8, 8)}), make_adapter(2, {"q": (9, 8)}))
