import numpy as np
import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora import grow, read_adapter, write_adapter
from rankwise.lora.adapter import factor_pairs
from tests.lora.adapters import IDS, load_mixed, make_adapter, products, save_mixed


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"h.1.q": 2}}])
def test_growth_keeps_delta_w(settings: dict) -> None:
    adapter = make_adapter(4, **settings)
    grown = grow(adapter, 9)
    before, after = products(adapter), products(grown)
    for name, delta in before.items():
        np.testing.assert_allclose(after[name], delta, rtol=1e-12)
    assert grown.config["r"] == 9
    assert grown.config["rank_pattern"] == {}
    for old, new in zip(factor_pairs(adapter), factor_pairs(grown), strict=True):
        assert torch.equal(new.a[: old.rank], old.a)
        assert torch.equal(new.b[:, : old.rank], old.b)
        assert (new.b[:, old.rank :] == 0).all()
        bound = new.d_in**-0.5  # Kaiming-uniform with a = sqrt(5)
        assert (new.a[old.rank :].abs() <= bound).all()
        assert new.a[old.rank :].std() == pytest.approx(bound / 3**0.5, rel=0.3)


def test_the_seed_decides_the_new_rows() -> None:
    adapter = make_adapter(4)
    one, again, other = (grow(adapter, 6, seed).tensors for seed in (0, 0, 1))
    name = "base_model.model.h.0.q.lora_A.weight"
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name][4:], one[name.replace("h.0", "h.1")][4:])


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_logits_stay_and_all_new_entries_learn_by_the_second_step(tmp_path, settings: dict) -> None:
    logits = save_mixed(tmp_path / "old", **settings)
    write_adapter(grow(read_adapter(tmp_path / "old"), 5), tmp_path / "new")
    model = load_mixed(tmp_path / "new", trainable=True)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), logits, rtol=1e-6, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    seen = set()
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                assert parameter.grad is not None
                new = (
                    parameter.grad[4:] if "_A" in name.split(".lora")[1] else parameter.grad[:, 4:]
                )
                if bool((new != 0).any()):
                    seen.add(name)
        optimizer.step()
    assert seen == {name for name, _ in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (3, "rank 3: allowed is a whole number, at least 4"),
        (13, "rank 13 is larger than a layer allows: at most 12"),
    ],
)
def test_a_rank_out_of_bounds_is_refused(rank: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        grow(make_adapter(4), rank)


def test_growth_to_the_present_rank_changes_nothing() -> None:
    adapter = make_adapter(4)
    same = grow(adapter, 4)
    assert all(torch.equal(same.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert {**adapter.config, "rank_pattern": {}, "alpha_pattern": {}} == same.config
