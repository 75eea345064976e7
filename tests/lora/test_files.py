import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import RankwiseError, RequestError
from rankwise.lora import read_adapter, write_adapter
from tests.lora.adapters import make_adapter, write_unchecked


def test_a_directory_without_a_readable_adapter_is_refused(tmp_path: Path, swept: Path) -> None:
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
    directory = write_unchecked(tmp_path / "a", make_adapter())
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


def test_pickled_weights_are_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = write_unchecked(tmp_path / "a", make_adapter())
    (directory / "adapter_model.safetensors").unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RequestError, match=r"pickle only .* weights_only=True"):
        read_adapter(directory)
    assert not (tmp_path / "exploded").exists()


def test_a_written_adapter_is_read_back_unchanged(tmp_path: Path) -> None:
    adapter = make_adapter(dtype=torch.bfloat16)
    write_adapter(adapter, tmp_path / "deep" / "out")
    again = read_adapter(tmp_path / "deep" / "out")
    assert again.config == adapter.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_adapter(make_adapter(), tmp_path / "empty")
    before = (tmp_path / "empty" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="is not empty"):
        write_adapter(make_adapter(2), tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        write_adapter(make_adapter(), tmp_path / "file")


def test_a_failed_write_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RankwiseError, match="No space left on device"):
        write_adapter(make_adapter(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
