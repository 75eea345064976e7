from pathlib import Path

import pytest

from rankwise.errors import RequestError
from rankwise.models import files
from rankwise.models.files import (
    check_model_files,
    check_model_path,
    load_arguments,
    model_directory,
    similar_directory,
)


def save_model(directory: Path, weights: str = "model.safetensors") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / weights).write_bytes(b"weights")
    return directory


def test_a_directory_with_config_and_safetensors_passes(tmp_path: Path) -> None:
    check_model_files(str(save_model(tmp_path)))
    assert model_directory(str(tmp_path)) == tmp_path
    assert load_arguments(str(tmp_path)) == (str(tmp_path), {})


@pytest.mark.parametrize("name", ["bert-base-uncased", "Qwen/Qwen3-0.6B", "_private/model.v2"])
def test_a_hub_id_passes_without_a_look_at_the_hub(name: str) -> None:
    check_model_files(name)
    assert model_directory(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("./missing", "no such directory"),
        ("/missing/a/b", "no such directory"),
        ("a/b/c", "no such directory"),
        (__file__, "is a file, not a directory"),
    ],
)
def test_a_wrong_path_is_refused_with_the_allowed_kinds(name: str, problem: str) -> None:
    with pytest.raises(RequestError, match=f"{problem}; allowed is a directory with config.json"):
        check_model_files(name)
    with pytest.raises(RequestError, match=problem):
        model_directory(name)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    save_model(tmp_path, "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"pickle only \(pytorch_model.bin\)"):
        check_model_files(str(tmp_path))


def test_a_directory_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no config\.json"):
        check_model_files(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="has no weights"):
        check_model_files(str(tmp_path))


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    monkeypatch.setattr(files, "find_spec", lambda name: object())
    check_model_files(str(path))
    assert load_arguments(str(path)) == (str(tmp_path), {"gguf_file": "tiny.gguf"})
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'rankwise\[gguf\]'"):
        check_model_files(str(path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./modles/qwen", "no such directory (did you mean 'models/qwen'?)"),
        ("models/qwen/weights", "no such directory; allowed"),
        ("models\\qwen", "(did you mean 'models/qwen'?)"),
        ("/nowhere/models/qwen", "no such directory; allowed"),
        ("models", "has no config.json; models in it: models/qwen"),
        ("models/qwen/config.json", "is a file, not a directory (did you mean 'models/qwen'?)"),
        ("adapter", "it holds an adapter: name its base model"),
    ],
)
def test_a_path_without_a_model_is_refused_with_the_nearest_one(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, config in (("models/qwen", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / config).write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as error:
        check_model_path(name)
    assert words in str(error.value)
    check_model_path("models/qwen")
    check_model_path("someone/a-model")  # may be a hub id


def test_a_path_in_the_home_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert repr(str(tmp_path / "models")) in similar_directory("~/models")
