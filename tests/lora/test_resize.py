import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rankwise.errors import RequestError
from rankwise.lora import read_adapter
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.resize import resize
from tests.lora.adapters import IDS, load_mixed, make_adapter, products, save_mixed, write_unchecked
from tests.lora.test_truncation import tail

KINDS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"fc": 2, "conv2d": 5}, "alpha_pattern": {"fc": 5}},
    {"use_rslora": True, "rank_pattern": {"embed": 7}, "alpha_pattern": {"conv1d": 3}},
]


def deltas(directory: Path) -> dict[str, torch.Tensor]:
    """PEFT's delta-W of every layer."""
    model = load_mixed(directory)
    return {
        name: model.get_submodule(f"base_model.model.{name}")
        .get_delta_weight("default")
        .detach()
        .double()
        for name in ("conv1d", "conv2d", "embed", "fc")
    }


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_is_the_best_approximation_in_every_kind_of_layer(
    tmp_path: Path, settings: dict[str, Any], rank: int
) -> None:
    save_mixed(tmp_path / "old", **settings)
    done = resize(tmp_path / "old", tmp_path / "new", rank=rank)
    before, after = deltas(tmp_path / "old"), deltas(tmp_path / "new")
    for layer in done.layers:
        flat = before[layer.name].flatten(1).numpy()
        size, least = np.linalg.norm(flat), tail(flat, rank)
        error = np.linalg.norm((after[layer.name] - before[layer.name]).numpy())
        assert error == pytest.approx(least, abs=2e-6 * size)
        assert layer.error == pytest.approx(least, abs=2e-6 * size)
        assert layer.energy == pytest.approx(1 - least**2 / size**2, abs=1e-5)
        assert layer.rank == min(rank, layer.rank_before)
    old, new = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("old", "new"))
    head = [name for name in old if "lora_" not in name]
    assert any("head" in name for name in head)
    assert all(torch.equal(old[name], new[name]) for name in head)
    assert done.params == sum(new[name].numel() for name in new if "lora_" in name)
    assert done.params_before == sum(old[name].numel() for name in old if "lora_" in name)


@pytest.mark.parametrize("settings", KINDS)
def test_the_largest_rank_changes_nothing_and_a_higher_one_grows(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    logits = save_mixed(tmp_path / "old", **settings)
    largest = max(pair.rank for pair in factor_pairs(read_adapter(tmp_path / "old")))
    resize(tmp_path / "old", tmp_path / "same", rank=largest)
    old, same = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("old", "same")
    )
    assert all(torch.equal(old[name], tensor) for name, tensor in same.items())
    done = resize(tmp_path / "old", tmp_path / "more", rank=9)
    assert {layer.rank for layer in done.layers} == {9}
    assert done.energy == pytest.approx(1)
    with torch.no_grad():
        torch.testing.assert_close(load_mixed(tmp_path / "same")(IDS), logits, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(load_mixed(tmp_path / "more")(IDS), logits, rtol=1e-6, atol=1e-6)
    with pytest.raises(RequestError, match="rank 13 is larger than a layer allows: at most 12"):
        resize(tmp_path / "old", tmp_path / "out", rank=13)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [2, 6])
def test_tensors_keep_their_dtype(tmp_path: Path, dtype: torch.dtype, rank: int) -> None:
    save_mixed(tmp_path / "old", dtype)
    resize(tmp_path / "old", tmp_path / "new", rank=rank)
    assert {
        tensor.dtype
        for tensor in load_file(tmp_path / "new" / "adapter_model.safetensors").values()
    } == {dtype}
    before, after = (products(read_adapter(tmp_path / name)) for name in ("old", "new"))
    for name, delta in before.items():
        rounding = 2 * torch.finfo(dtype).eps * np.linalg.norm(delta)
        assert np.linalg.norm(after[name] - delta) <= math.hypot(tail(delta, rank), rounding)


def test_truncation_matches_the_conversion_of_peft(tmp_path: Path) -> None:
    """`peft.convert_to_lora` decomposes the whole delta-W, to one rank or by energy."""
    conversion = pytest.importorskip("peft.tuners.lora.conversion")
    targets = {"target_modules": ["fc", "conv1d"], "alpha_pattern": {"fc": 3}}
    save_mixed(tmp_path / "old", **targets)
    for number, size in enumerate([1, 2, 4, 0.5, 0.9, 0.999]):
        _, tensors = conversion.convert_to_lora(load_mixed(tmp_path / "old"), size)
        out = tmp_path / f"new{number}"
        resize(tmp_path / "old", out, **{"rank" if isinstance(size, int) else "energy": size})
        for pair in factor_pairs(read_adapter(out)):
            a, b = (
                tensors[f"base_model.model.{pair.name}.lora_{side}.weight"].double()
                for side in "AB"
            )
            assert (a.shape, b.shape) == (pair.a.shape, pair.b.shape)
            np.testing.assert_allclose(
                (b @ a).numpy(), products(read_adapter(out))[pair.name], atol=2e-6
            )


def test_energy_and_budget_write_patterns_that_peft_reads(tmp_path: Path) -> None:
    save_mixed(tmp_path / "old")
    for number, choice in enumerate([{"energy": 0.7}, {"rank_pattern": "auto:200"}, {"energy": 1}]):
        out = tmp_path / f"new{number}"
        done = resize(tmp_path / "old", out, **choice)  # type: ignore[arg-type]
        model = load_mixed(out)
        for layer in done.layers:
            assert model.get_submodule(f"base_model.model.{layer.name}").r["default"] == layer.rank
            if "energy" in choice:
                assert layer.energy >= choice["energy"] - 1e-12  # type: ignore[operator]
        kept = 1 - sum(layer.error**2 for layer in done.layers) / sum(
            float(delta.square().sum()) for delta in deltas(tmp_path / "old").values()
        )
        assert done.energy == pytest.approx(kept, abs=1e-6)
    assert done.params == done.params_before
    assert resize(tmp_path / "old", tmp_path / "last", rank_pattern="auto:200").params <= 200


def test_lora_bias_and_trained_biases_are_kept(tmp_path: Path) -> None:
    logits = save_mixed(
        tmp_path / "old", target_modules=["fc", "conv2d"], lora_bias=True, bias="none"
    )
    resize(tmp_path / "old", tmp_path / "new", rank=7)
    with torch.no_grad():
        torch.testing.assert_close(load_mixed(tmp_path / "new")(IDS), logits, rtol=1e-6, atol=1e-6)
    save_mixed(tmp_path / "all", target_modules=["fc", "conv2d"], bias="all")
    resize(tmp_path / "all", tmp_path / "truncated", rank=2)
    old, new = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("all", "truncated")
    )
    biases = [name for name in old if name.endswith(".bias")]
    assert len(biases) >= 3
    assert all(torch.equal(old[name], new[name]) for name in biases)


def test_an_adapter_with_orthogonal_init_takes_odd_ranks(tmp_path: Path) -> None:
    save_mixed(tmp_path / "old", target_modules=["fc"], init_lora_weights="orthogonal")
    resize(tmp_path / "old", tmp_path / "new", rank=3)
    assert load_mixed(tmp_path / "new").peft_config["default"].r == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weight by pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "mica"}, "freezes B (mica)"),
        ({"ensure_weight_tying": True}, "ties factors of two layers"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    directory = write_unchecked(tmp_path / "old", make_adapter(**settings))
    with pytest.raises(RequestError) as error:
        resize(directory, tmp_path / "out", rank=2)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_dora_as_peft_saves_it_is_refused(tmp_path: Path) -> None:
    save_mixed(tmp_path / "old", use_dora=True, target_modules=["fc"])
    with pytest.raises(RequestError, match="is DoRA"):
        resize(tmp_path / "old", tmp_path / "out", rank=2)


def test_the_adapter_of_a_sweep_can_be_resized(swept: Path, tmp_path: Path) -> None:
    source = next((swept / "trials").glob("r8-*")) / "adapter"
    resize(source, tmp_path / "out", rank=3)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
@pytest.mark.parametrize("rank", [2, 9])
def test_factors_of_few_bits_keep_their_dtype_and_the_rounding_is_measured(
    tmp_path: Path, dtype: torch.dtype, rank: int
) -> None:
    adapter = make_adapter(dtype=dtype)
    write_unchecked(tmp_path / "old", adapter)
    done = resize(tmp_path / "old", tmp_path / "new", rank=rank)
    written = read_adapter(tmp_path / "new")
    assert {tensor.dtype for tensor in written.tensors.values()} == {dtype}
    if rank == 9:
        for name, delta in products(written).items():
            np.testing.assert_array_equal(delta, products(adapter)[name])
        assert (done.rounding, done.dtypes) == (0.0, ())
        return
    lost = kept = 0.0
    for name, delta in products(adapter).items():
        u, values, v = np.linalg.svd(delta)
        best = u[:, :rank] * values[:rank] @ v[:rank]
        lost += np.sum((products(written)[name] - best) ** 2)
        kept += np.sum(values[:rank] ** 2)
    assert done.rounding == pytest.approx(math.sqrt(lost / kept), rel=1e-3)
    assert done.dtypes == (str(dtype).removeprefix("torch."),)


def test_card_tokenizer_and_chat_template_go_along_and_the_rest_is_named(tmp_path: Path) -> None:
    write_unchecked(tmp_path / "old", make_adapter())
    kept = ["README.md", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in (*kept, "optimizer.pt", "trainer_state.json"):
        (tmp_path / "old" / name).write_text(name)
    (tmp_path / "old" / "additional_chat_templates").mkdir()
    (tmp_path / "old" / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    done = resize(tmp_path / "old", tmp_path / "new", rank=2)
    assert done.copied == ("README.md", "additional_chat_templates", *kept[1:])
    assert done.left == ("optimizer.pt", "trainer_state.json")
    for name in kept:
        assert (tmp_path / "new" / name).read_text() == name
    assert (tmp_path / "new" / "additional_chat_templates" / "rag.jinja").is_file()
    assert not (tmp_path / "new" / "optimizer.pt").exists()
    document = json.loads(json.dumps(done.as_dict()))
    assert document["left"] == ["optimizer.pt", "trainer_state.json"]
