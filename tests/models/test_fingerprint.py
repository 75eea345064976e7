"""Digests of models: what decides the training changes them, and nothing else does."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankwise.models import fingerprint
from rankwise.models.fingerprint import cache_directory, model_digests
from tests.factories import flipped_bit

TENSORS = {"a.weight": torch.arange(24.0).view(4, 6), "b.weight": torch.ones(3, dtype=torch.bfloat16)}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.model", "spiece.model", "vocab.bpe", "modeling_own.py"):
        (directory / name).write_text(f"content of {name}")
    save_file(TENSORS, directory / "model.safetensors", {"format": "pt"})
    return directory


def change(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("another content")


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.model", "spiece.model", "vocab.bpe", "modeling_own.py",
        "merges.txt", "chat_template.jinja", "additional_chat_templates/tools.jinja", "own/layers.py",
    ],
)  # fmt: skip
def test_every_file_that_a_library_reads_counts(model: Path, name: str) -> None:
    before = model_digests(str(model))
    change(model / name)
    after = model_digests(str(model))
    assert after.files != before.files
    assert after.weights == before.weights


@pytest.mark.parametrize(
    "name",
    ["README.md", ".gitattributes", ".cache/refs.json", "pytorch_model.bin", "onnx/config.json"],
)
def test_files_that_training_does_not_read_do_not_count(model: Path, name: str) -> None:
    before = model_digests(str(model))
    change(model / name)
    assert model_digests(str(model)) == before


def test_a_sweep_or_an_environment_below_the_model_is_no_part_of_it(model: Path) -> None:
    before = model_digests(str(model))
    for name in ("out/sweep.json", "lost/trials/r4", "env/pyvenv.cfg", "env/lib/module.py"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).touch()
    for out in ("out", "lost"):
        (model / out / "export").mkdir()
        (model / out / "export" / "peft_config.py").write_text("config = None")
    assert model_digests(str(model)) == before


def test_every_bit_of_the_weights_counts(model: Path) -> None:
    """Also in the middle of large files, which an earlier version did not read."""
    path = model / "model.safetensors"
    save_file({"w": torch.zeros(3 << 18)}, path)
    before, content = model_digests(str(model)), path.read_bytes()
    path.write_bytes(flipped_bit(content, 8 * (len(content) // 2) + 2))
    after = model_digests(str(model))
    assert after.weights != before.weights
    assert after.files == before.files


def test_a_tensor_that_ends_beyond_the_file_counts(model: Path) -> None:
    before, path = model_digests(str(model)), model / "model.safetensors"
    content = path.read_bytes()
    assert content.count(b"[0,96]") == content.count(b"[96,102]") == 1
    path.write_bytes(content.replace(b"[96,102]", b"[96,902]"))
    assert model_digests(str(model)).weights != before.weights


def test_the_same_tensors_in_other_files_are_the_same_weights(model: Path) -> None:
    before = model_digests(str(model)).weights
    (model / "model.safetensors").unlink()
    for number, (name, tensor) in enumerate(reversed(TENSORS.items())):
        save_file({name: tensor}, model / f"model-{number}.safetensors", {"made": "elsewhere"})
    assert model_digests(str(model)).weights == before
    save_file({"b.weight": TENSORS["b.weight"].view(3, 1)}, model / "model-0.safetensors")
    assert model_digests(str(model)).weights != before


def test_a_moved_model_is_the_same_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    assert model_digests(str(tmp_path / "copy")) == model_digests(str(model))


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    before = model_digests(str(path))
    path.write_bytes(b"GGUF and so of")
    assert model_digests(str(path)) != before


def test_a_model_of_a_hub_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_digests("someone/small").weights == "hub:someone/small"  # not loaded yet
    for commit in ("1" * 40, "2" * 40):
        place = tmp_path / "models--someone--small"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        found = model_digests("someone/small")
        assert found.weights == found.files == f"hub:someone/small@{commit}"


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the weights files that are read; all of them count as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "CACHED_FROM", 0)
    seen: list[str] = []
    read = fingerprint._tensors

    def noted(path: Path) -> dict[str, str]:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(fingerprint, "_tensors", noted)
    return seen


def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass since the file was changed."""
    now = time.time()
    monkeypatch.setattr(fingerprint.time, "time", lambda: now + 60)


def test_large_weights_are_read_once_until_they_change(
    model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model / "model.safetensors"
    first = model_digests(str(model))
    assert model_digests(str(model)) == first
    assert len(reads) == 2  # just written, it may change again at the same time
    let_time_pass(monkeypatch)
    for _ in range(3):
        assert model_digests(str(model)) == first
    assert len(reads) == 3
    # The same size, and the old time set again: the time of the change of the entry differs.
    times = path.stat()
    path.write_bytes(flipped_bit(path.read_bytes(), -8))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_digests(str(model)) != first
    assert len(reads) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "no object"])
def test_a_damaged_cache_only_costs_time(
    model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    let_time_pass(monkeypatch)
    first = model_digests(str(model))
    (entry,) = cache_directory().iterdir()
    text = entry.read_text()
    some_digest = next(iter(json.loads(text)["tensors"].values()))
    changed = {"flipped": text.replace(some_digest, some_digest[::-1]), "cut": text[:-9]}
    entry.write_text(changed.get(damage, "[1]"))
    assert model_digests(str(model)) == first
    assert len(reads) == 2
    assert model_digests(str(model)) == first
    assert len(reads) == 2  # it was written again


def test_a_cache_that_cannot_be_written_only_costs_time(
    model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_time_pass(monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert model_digests(str(model)) == model_digests(str(model))
    assert len(reads) == 2
