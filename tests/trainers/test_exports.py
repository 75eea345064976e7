import json
import shlex
import sys
from pathlib import Path

import yaml

from rankwise.store.records import TrialRecord
from rankwise.trainers.command import parse_command
from rankwise.trainers.config_file import ConfigFile
from rankwise.trainers.exports import chosen_files
from rankwise.trainers.tools import TOOLS, ToolCommand

TRAINED = TrialRecord(
    directory=Path("trials/r4-lr0.0002-seed1"), rank=4, seed=1, learning_rate=2e-4, lora_alpha=8.0,
    use_rslora=False, step=0, diverged=False, eval_loss=1.0, eval_score=0.5, trainable_params=10,
    adapter_bytes=40, train_seconds=1.0, pack_seconds=1.0, pack_size=1, eval_seconds=1.0, peak_memory_bytes=0,
)  # fmt: skip


def test_a_command_with_the_chosen_values() -> None:
    text = (
        f"{sys.executable} 'my train.py' {{rank}} {{lora_alpha}} {{learning_rate}} {{out}} {{seed}}"
    )
    files = chosen_files(parse_command(text), TRAINED, None)
    assert list(files) == ["command.txt"]
    assert shlex.split(files["command.txt"])[1:] == [
        "my train.py",
        "4",
        "8",
        "0.0002",
        "adapter",
        "1",
    ]


def test_a_command_s_file_of_values() -> None:
    command = parse_command(f"{sys.executable} train.py {{config}} {{train_data}}")
    files = chosen_files(command, TRAINED, "data/chats.jsonl")
    assert shlex.split(files["command.txt"])[1:] == ["train.py", "config.json", "data/chats.jsonl"]
    values = json.loads(files["config.json"])
    assert (values["rank"], values["learning_rate"], values["out"]) == (4, 2e-4, "adapter")


def test_a_tool_s_file_with_the_chosen_values(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text(
        "# mine\nbase_model: m\nadapter: lora\nlora_r: 64\ndatasets:\n  - path: a.jsonl\n"
    )
    command = ToolCommand("axolotl", TOOLS["axolotl"], ConfigFile(path), "a.jsonl")
    files = chosen_files(command, TRAINED, "a.jsonl")
    assert files["command.txt"] == "axolotl train my.yml\n"
    assert files["my.yml"].startswith("# mine\n")
    content = yaml.safe_load(files["my.yml"])
    assert content["datasets"] == [{"path": "a.jsonl"}]  # all of the data
    chosen = {name: content[name] for name in ("lora_r", "lora_alpha", "learning_rate", "seed")}
    assert chosen == {"lora_r": 4, "lora_alpha": 8, "learning_rate": 2e-4, "seed": 1}
