import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rankwise.errors import RankwiseError, RequestError
from rankwise.lora import Adapter, read_adapter, write_adapter
from rankwise.lora.adapter import pairs
from tests.lora.adapters import load_mixed, make_adapter, save_mixed

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
def test_scaling_and_delta_w_are_those_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_mixed(tmp_path / "a", **settings)
    model = load_mixed(tmp_path / "a")
    found = pairs(read_adapter(tmp_path / "a"))
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


def written(directory: Path, adapter: Adapter) -> Path:
    """Write an adapter without any check."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(dict(adapter.config)))
    save_file(dict(adapter.tensors), directory / "adapter_model.safetensors")
    return directory


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
        (make_adapter(target_parameters=["experts.w1"]), "stacked experts"),
    ],
)
def test_adapters_that_cannot_serve(tmp_path: Path, adapter: Adapter, words: str) -> None:
    directory = written(tmp_path / "a", adapter)
    with pytest.raises(RequestError) as error:
        read_adapter(directory)
    assert words in str(error.value)
    assert str(error.value).startswith(f"adapter '{directory}'")
    assert "\n" not in str(error.value)


def test_directories_that_cannot_serve(tmp_path: Path, swept: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("absent", "no such directory"),
        ("file", "is a file"),
        ("empty", "no adapter_config.json"),
    ):
        with pytest.raises(RequestError, match=words):
            read_adapter(tmp_path / name)
    with pytest.raises(RequestError, match=r"did you mean '.*best'"):
        read_adapter(swept)
    directory = written(tmp_path / "a", make_adapter())
    (directory / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(RequestError, match=r"adapter_model\.safetensors cannot be read"):
        read_adapter(directory)
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"the directory has no adapter_model\.safetensors"):
        read_adapter(directory)
    (directory / "adapter_config.json").write_text("{")
    with pytest.raises(RequestError, match=r"adapter_config\.json cannot be read"):
        read_adapter(directory)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_pickle_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = written(tmp_path / "a", make_adapter())
    (directory / "adapter_model.safetensors").unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RequestError, match=r"pickle only .* save_pretrained"):
        read_adapter(directory)
    assert not (tmp_path / "exploded").exists()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    adapter = make_adapter(dtype=torch.bfloat16)
    write_adapter(adapter, tmp_path / "deep" / "out")
    again = read_adapter(tmp_path / "deep" / "out")
    assert again.config == adapter.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_adapter(make_adapter(), tmp_path / "empty")
    before = (tmp_path / "empty" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="is not empty"):
        write_adapter(make_adapter(2), tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        write_adapter(make_adapter(), tmp_path / "file")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RankwiseError, match="No space left on device"):
        write_adapter(make_adapter(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
