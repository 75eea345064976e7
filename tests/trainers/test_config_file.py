from pathlib import Path

import pytest
import yaml

from rankwise.errors import RequestError
from rankwise.trainers.config_file import ConfigFile

TEXT = """\
# my training
base_model: some/model   # a comment
lora_r: 16  # tried 8 too
lora_alpha: &alpha 32
learning_rate: 2e-4
seed:
datasets:
  - path: "data/train.jsonl"   # all of it
    type: chat_template
  - {path: other.jsonl, type: completion}
note: |
  lora_r: 16
  two lines
"""


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    path = tmp_path / "my.yml"
    path.write_text(TEXT)
    return ConfigFile(path)


def test_values_change_and_all_else_stays(file: ConfigFile) -> None:
    values = {"lora_r": 4, "learning_rate": 1e-5, "seed": 1, "output_dir": "/o: ut", "flag": True}
    text = file.changed(values, {"data/train.jsonl": "/out/train_data.jsonl"})
    changed = yaml.safe_load(text)
    expected = {**file.values, **values}
    expected["datasets"][0] = {"path": "/out/train_data.jsonl", "type": "chat_template"}
    assert changed == expected
    lines = text.splitlines()
    assert lines[:3] == [
        "# my training",
        "base_model: some/model   # a comment",
        "lora_r: 4  # tried 8 too",
    ]
    assert "   # all of it" in text
    assert "  lora_r: 16\n  two lines\n" in text


def test_nothing_changed_is_the_file_itself(file: ConfigFile) -> None:
    assert file.changed({}, {}) == TEXT


@pytest.mark.parametrize(
    "text", ["a: 1\n...\n", "  a: 1\n  b:\n", "---\na: 1\n# end", "a: |\n  1\n\n"]
)
def test_settings_are_added_at_the_end_of_the_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yml"
    path.write_text(text)
    changed = ConfigFile(path).changed({"seed": 0, "rank": 4}, {})
    assert yaml.safe_load(changed) == {**yaml.safe_load(text), "seed": 0, "rank": 4}


def test_a_file_without_a_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("lora_r: 16")
    assert yaml.safe_load(ConfigFile(path).changed({"lora_r": 2, "seed": 0}, {})) == {
        "lora_r": 2,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x {b: 1}\nc: 2\nd: *x\n", r"line 3: alias \*x"),
        ("lora_r: 4\na: 1\nlora_r: 8\n", "line 3: lora_r is on line 1 already"),
        ("lora_r: [4", "is not YAML"),
        ("- 4\n", "mapping"),
        ("{lora_r: 4}", "mapping"),
        ("", "None"),
    ],
)
def test_what_cannot_be_changed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "my.yml"
    path.write_text(text)
    with pytest.raises(RequestError, match=words):
        ConfigFile(path)
    with pytest.raises(RequestError, match="No such file"):
        ConfigFile(tmp_path / "absent.yml")
