from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.lora import Adapter, read_adapter
from rankwise.lora.adapter import factor_pairs, natural_order, replace_pairs
from tests.lora.adapters import load_mixed, make_adapter, save_mixed, write_unchecked

Q_A = "base_model.model.h.0.q.lora_A.weight"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"fc": 2, "conv.d": 3}, "alpha_pattern": {"^embed": 5, ".*2d": 7}},
        {"use_rslora": True, "rank_pattern": {"conv1d": 6}, "alpha_pattern": {"conv2d": 1}},
    ],
)
def test_scaling_and_delta_w_match_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_mixed(tmp_path / "a", **settings)
    model = load_mixed(tmp_path / "a")
    found = factor_pairs(read_adapter(tmp_path / "a"))
    assert [pair.name for pair in found] == ["conv1d", "conv2d", "embed", "fc"]
    for pair in found:
        module = model.get_submodule(f"base_model.model.{pair.name}")
        assert pair.scaling == module.scaling["default"]
        truth = module.get_delta_weight("default").detach().double()
        a, b = pair.matrices()  # (r, d_in), (d_out, r)
        delta = pair.scaling * b @ a
        if pair.name in ("embed", "conv1d"):  # PEFT has them the other way round
            delta = delta.T
        torch.testing.assert_close(delta.reshape(truth.shape), truth, rtol=1e-5, atol=1e-6)
        assert (pair.d_out, pair.d_in) == {
            "conv1d": (18, 12), "conv2d": (12, 18), "embed": (16, 30), "fc": (12, 16)
        }[pair.name]  # fmt: skip
        assert pair.is_embedding == (pair.name == "embed")


def without(adapter: Adapter, key: str, **more: torch.Tensor) -> Adapter:
    return Adapter(
        {**{name: one for name, one in adapter.tensors.items() if name != key}, **more},
        adapter.config,
    )


def replaced(key: str, tensor: torch.Tensor) -> Adapter:
    adapter = make_adapter()
    return Adapter({**adapter.tensors, key: tensor}, adapter.config)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (make_adapter(peft_type="ADALORA"), "is of PEFT type 'ADALORA'; allowed is 'LORA'"),
        (make_adapter(peft_type="IA3"), "'IA3'"),
        (Adapter(make_adapter().tensors, {"r": 6}), "PEFT type None"),
        (without(make_adapter(), Q_A), f"'h.0.q' has lora_B but no lora_A ('{Q_A}' is missing)"),
        (without(make_adapter(), Q_A.replace("A", "B")), "has lora_A but no lora_B"),
        (
            replaced(Q_A, torch.full((6, 24), torch.nan)),
            "lora_A of layer 'h.0.q' has weights that are not finite",
        ),
        (
            replaced(Q_A.replace("_A", "_B"), torch.full((24, 6), torch.inf)),
            "lora_B of layer 'h.0.q' has weights",
        ),
        (replaced(Q_A, torch.ones(6, 24, dtype=torch.int8)), "is of dtype torch.int8"),
        (
            replaced(Q_A, torch.ones(5, 24)),
            "has shape (5, 24), but adapter_config.json says rank 6",
        ),
        (
            replaced(Q_A.replace("_A", "_B"), torch.ones(24, 5)),
            "has shape (24, 5), expected (d_out, 6)",
        ),
        (replaced(Q_A.replace("_A", "_B"), torch.ones(24, 3, 1, 1)), "convolution in groups"),
        (replaced(Q_A.replace("_A", "_C"), torch.ones(2, 2)), "is no tensor of a LoRA adapter"),
        (
            Adapter({"head.weight": torch.ones(2)}, make_adapter().config),
            "no LoRA factors among its tensors (head",
        ),
        (make_adapter(r="eight"), "r 'eight' of layer"),
        (make_adapter(lora_alpha=None), "lora_alpha None"),
        (
            make_adapter(alpha_pattern={"(": 3}),
            "alpha_pattern in adapter_config.json is no mapping",
        ),
        (make_adapter(alpha_pattern=[3]), "alpha_pattern in adapter_config.json is no mapping"),
        (make_adapter(use_qalora=True), "QA-LoRA is not supported"),
    ],
)
def test_a_broken_or_unsupported_adapter_is_refused_in_one_line(
    tmp_path: Path, adapter: Adapter, words: str
) -> None:
    directory = write_unchecked(tmp_path / "a", adapter)
    with pytest.raises(RequestError) as error:
        read_adapter(directory)
    assert words in str(error.value)
    assert str(error.value).startswith(f"adapter '{directory}'")
    assert "\n" not in str(error.value)


def test_layers_are_ordered_by_their_numbers() -> None:
    assert sorted(["h.10.q", "h.2.v", "h.2.q", "a"], key=natural_order) == [
        "a",
        "h.2.q",
        "h.2.v",
        "h.10.q",
    ]


def test_replaced_pairs_keep_scaling_and_write_patterns_that_read_back() -> None:
    adapter = make_adapter(6, use_rslora=True)
    ranks = {"h.0.q": 2, "h.0.v": 6, "h.1.q": 3, "h.10.q": 3}
    before = {pair.name: pair for pair in factor_pairs(adapter)}
    smaller = []
    for name, rank in ranks.items():
        a, b = before[name].matrices()
        smaller.append(before[name].with_matrices(a[:rank], b[:, :rank]))
    after = {pair.name: pair for pair in factor_pairs(replace_pairs(adapter, smaller))}
    assert {name: pair.rank for name, pair in after.items()} == ranks
    for name, pair in after.items():
        assert pair.scaling == pytest.approx(before[name].scaling, rel=1e-15)
        assert torch.equal(pair.a, before[name].a[: ranks[name]])
