from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.errors import RequestError
from rankwise.trainers.sweep_file import sweep_file


def write(path: Path, **changes: Any) -> Path:
    content = {
        "base_model": "some/model",
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        **changes,
    }
    (path / "my.yml").write_text(yaml.safe_dump(content))
    return path / "my.yml"


def test_a_sweep_file_is_read_as_a_sweep(tmp_path: Path) -> None:
    from rankwise.settings import named
    from rankwise.sweeps.config import SweepConfig, read_yaml

    data = tmp_path / "chats.jsonl"
    data.touch()
    config = write(
        tmp_path, learning_rate=2e-4, datasets=[{"path": str(data), "type": "chat_template"}]
    )
    text = sweep_file("axolotl", config)
    (tmp_path / "sweep.yaml").write_text(text)
    settings = read_yaml(tmp_path / "sweep.yaml")
    assert named(SweepConfig, settings, "a sweep") == {
        "trainer": "axolotl", "trainer_config": str(config), "model": "some/model", "data": str(data),
        "ranks": [4, 8, 16, 32], "seeds": 2, "lora_alpha": "2r", "learning_rate": "auto", "margin": 0.02,
        "out": "rankwise-out",
    }  # fmt: skip
    assert "Yours was 0.0002" in text
    assert "lora_alpha, learning_rate, seed" in text


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"lora_alpha": 16}, "r"),
        ({"lora_alpha": 20}, "fixed:20"),
        ({"lora_alpha": 16, "peft_use_rslora": True}, "rslora:16"),
        ({"lora_alpha": None}, "r"),
        ({"lora_alpha": True}, "r"),
        ({"lora_alpha": float("nan")}, "r"),
        ({"lora_r": {"all": 8}}, "fixed:32"),
    ],
)
def test_the_rule_for_alpha_is_that_of_the_file(
    tmp_path: Path, changes: dict[str, Any], policy: str
) -> None:
    content = yaml.safe_load(sweep_file("axolotl", write(tmp_path, **changes)))
    assert content["lora-alpha"] == policy
    assert "data" not in content


def test_a_rate_that_is_no_number_is_not_offered(tmp_path: Path) -> None:
    assert "Yours was" not in sweep_file("axolotl", write(tmp_path, learning_rate=[1]))


def test_unknown_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'unsloth': allowed are axolotl, llama-factory, trl"):
        sweep_file("unsloth", write(tmp_path))
