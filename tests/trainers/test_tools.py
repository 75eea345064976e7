"""Files of known tools: a trial's values under each tool's own names, held to its schema."""

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.errors import RequestError
from rankwise.sweeps.config import make_config
from rankwise.trainers.tools import (
    ToolCommand,
    check_adapters,
    check_metric,
    notes_on_file,
    parse_trainer,
)
from tests.exports.tools import SCHEMAS, allow_llama_factory, assert_known

AXOLOTL = {"base_model": "some/model", "adapter": "qlora", "load_in_4bit": True, "lora_r": 16, "lora_alpha": 32,
           "seed": 42, "datasets": [{"path": "chats.jsonl", "type": "chat_template"}]}  # fmt: skip
LLAMA_FACTORY = {"model_name_or_path": "some/model", "stage": "sft", "do_train": True, "finetuning_type": "lora",
                 "lora_rank": 8, "dataset": "mine", "template": "chatml"}  # fmt: skip
TRL = {
    "model_name_or_path": "some/model",
    "use_peft": True,
    "lora_r": 16,
    "dataset_name": "chats.jsonl",
}
FILES = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "trl": TRL, "trl dpo": TRL}
VALUES = {"rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-05, "seed": 1, "use_rslora": False,
          "out": "/out", "trial": "r4", "train_data": "/sweep/train_data.jsonl"}  # fmt: skip


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the tools' names, found first."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for name in ("axolotl", "llamafactory-cli", "trl"):
        program = bin_directory / name
        program.write_text(f"#!{sys.executable}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{bin_directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


def parse(name: str, path: Path, data: str | None = "chats.jsonl", **changes: Any) -> ToolCommand:
    content = {key: value for key, value in {**FILES[name], **changes}.items() if value != "absent"}
    (path / "my.yml").write_text(yaml.safe_dump(content))
    command = parse_trainer(name, path / "my.yml", data)
    assert isinstance(command, ToolCommand)
    return command


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("axolotl", ["axolotl", "train", "/c.yaml"]),
        ("llama-factory", ["llamafactory-cli", "train", "/c.yaml"]),
        ("trl", ["trl", "sft", "--config", "/c.yaml"]),
        ("trl dpo", ["trl", "dpo", "--config", "/c.yaml"]),
    ],
)
def test_each_tool_has_its_command(tmp_path: Path, name: str, words: list[str]) -> None:
    assert parse(name, tmp_path).fill({"config": "/c.yaml"}) == words


def test_axolotl_s_file_of_a_trial(tmp_path: Path) -> None:
    content = yaml.safe_load(parse("axolotl", tmp_path).config_text(VALUES))
    assert content == {
        **AXOLOTL, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-05, "seed": 1, "output_dir": "/out",
        "datasets": [{"path": "/sweep/train_data.jsonl", "type": "chat_template"}],
    }  # fmt: skip
    assert_known(content, SCHEMAS["axolotl"]["fields"])


def test_llama_factory_s_file_of_a_trial(tmp_path: Path) -> None:
    command = parse("llama-factory", tmp_path)
    content = yaml.safe_load(command.config_text({**VALUES, "use_rslora": True}))
    assert content == {
        **LLAMA_FACTORY, "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-05, "seed": 1, "output_dir": "/out",
        "use_rslora": True,
    }  # fmt: skip
    assert_known(content, SCHEMAS["llamafactory"]["fields"])
    assert not command.has("train_data")  # its file names a data set, and that is not --data


@pytest.mark.slow
def test_axolotl_s_own_parser_takes_a_trial_s_file(tmp_path: Path) -> None:
    pytest.importorskip("axolotl", reason="pins another torch; see tests/exports/read_schemas.py")
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    command = parse("axolotl", tmp_path, micro_batch_size=2, num_epochs=1, lora_target_linear=True)
    text = command.config_text({**VALUES, "use_rslora": True})
    valid = validate_config(DictDefault(yaml.safe_load(text)))
    assert (valid.lora_r, valid.lora_alpha, valid.peft_use_rslora) == (4, 8, True)
    assert (valid.learning_rate, valid.seed, valid.output_dir) == (1e-05, 1, "/out")
    assert valid.datasets[0]["path"] == "/sweep/train_data.jsonl"


@pytest.mark.slow
def test_llama_factory_s_own_parser_takes_a_trial_s_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_llama_factory(monkeypatch)
    from llamafactory.hparams.parser import _parse_train_args

    text = parse("llama-factory", tmp_path).config_text({**VALUES, "use_rslora": True})
    model, data, training, tuning, _ = _parse_train_args(yaml.safe_load(text))
    assert (tuning.lora_rank, tuning.lora_alpha, tuning.use_rslora) == (4, 8, True)
    assert (training.learning_rate, training.seed, training.output_dir) == (1e-05, 1, "/out")
    assert (model.model_name_or_path, data.dataset) == ("some/model", ["mine"])


def test_trl_reads_a_trial_s_file(tmp_path: Path) -> None:
    """With TRL's own parser, as ``trl sft --config`` does."""
    from tests.exports.tools import parse_with_trl

    text = parse("trl", tmp_path).config_text(VALUES)
    script, training, model, _ = parse_with_trl(text, tmp_path)
    assert script.dataset_name == "/sweep/train_data.jsonl"
    assert (model.lora_r, model.lora_alpha, model.use_peft) == (4, 8, True)
    assert (training.seed, training.output_dir, training.learning_rate) == (1, "/out", 1e-05)


def test_what_of_the_file_does_not_hold_is_said(tmp_path: Path) -> None:
    first, second, third = notes_on_file(parse("axolotl", tmp_path), "none")
    assert first == "lora_alpha, seed, lora_r of my.yml are replaced in every trial"
    assert "seed" in second
    assert "--quantization nf4" in third
    assert len(notes_on_file(parse("axolotl", tmp_path), "nf4")) == 2


def test_a_fixed_order_of_examples_is_said(tmp_path: Path) -> None:
    assert "data_seed" in notes_on_file(parse("llama-factory", tmp_path, data_seed=1), "none")[-1]
    assert "data_seed" not in "".join(notes_on_file(parse("llama-factory", tmp_path), "none"))


def test_a_tool_needs_data_or_a_metric(tmp_path: Path) -> None:
    parse("axolotl", tmp_path)
    with pytest.raises(RequestError, match=r"'axolotl' needs --data, .* or --metric"):
        make_config({"trainer": "axolotl", "trainer_config": tmp_path / "my.yml"})


@pytest.mark.parametrize(
    ("name", "evaluation"),
    [
        ("axolotl", {"val_set_size": 0.1}),
        ("llama-factory", {"eval_strategy": "epoch", "eval_dataset": "held_out"}),
        ("llama-factory", {"eval_strategy": "steps", "val_size": 0.1}),
        ("trl", {"eval_strategy": "steps"}),
    ],
)
def test_a_metric_needs_an_evaluation(
    tmp_path: Path, name: str, evaluation: dict[str, Any]
) -> None:
    check_metric(parse(name, tmp_path, **evaluation), "eval_loss")
    command = parse(name, tmp_path, **dict.fromkeys(evaluation, "no"))
    check_metric(command, "train_loss")
    with pytest.raises(RequestError, match=f"my.yml has no evaluation.*{next(iter(evaluation))}"):
        check_metric(command, "eval_loss")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("llama-factory", {"val_size": 0.1}, "eval_strategy and val_size or eval_dataset"),
        ("llama-factory", {"eval_strategy": "steps"}, "eval_strategy and val_size or eval_dataset"),
        ("llama-factory", {"eval_strategy": False, "val_size": 0.1}, "eval_strategy"),
        ("trl", {"do_eval": True}, "eval_strategy there"),
    ],
)
def test_settings_that_do_not_evaluate_during_training(
    tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=f"no evaluation during training; set {words}"):
        check_metric(parse(name, tmp_path, **settings), "eval_loss")


def test_do_eval_alone_leaves_the_trainer_without_evaluations(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import DefaultFlowCallback

    def evaluates(**settings: Any) -> bool:
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
        flow, state = DefaultFlowCallback(), TrainerState(epoch=1.0, global_step=4, eval_steps=2)
        step = flow.on_step_end(args, state, TrainerControl()).should_evaluate
        return step or flow.on_epoch_end(args, state, TrainerControl()).should_evaluate

    assert not evaluates(do_eval=True)
    assert evaluates(eval_strategy="epoch") and evaluates(eval_strategy="steps", eval_steps=2)


def test_data_that_a_tool_would_not_read_as_json_lines(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'chats.csv': my.yml names it.*convert the data"):
        parse("trl", tmp_path, "chats.csv", dataset_name="chats.csv")
    parse("trl", tmp_path, "other.csv", dataset_name="chats.csv")  # it reads the file as it is


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("axolotl", {"adapter": "absent"}, ["has no adapter", 'adapter: "lora"']),
        ("axolotl", {"adapter": "prefix"}, ['has adapter: "prefix"']),
        ("axolotl", {"hub_model_id": "me/x"}, ["hub_model_id 'me/x'", "push"]),
        ("axolotl", {"merge_lora": True}, ["merge_lora", "merge"]),
        ("axolotl", {"relora": True}, ["relora", "merge"]),
        ("axolotl", {"lora_model_dir": "a"}, ["lora_model_dir", "trained already"]),
        ("axolotl", {"base_model": "absent"}, ["has no base_model"]),
        ("llama-factory", {"finetuning_type": "full"}, ["finetuning_type"]),
        ("llama-factory", {"do_train": "absent"}, ["do_train: true"]),
        ("llama-factory", {"push_to_hub": True}, ["push_to_hub"]),
        ("trl", {"use_peft": False}, ["use_peft: false", "use_peft: true"]),
    ],
)
def test_files_that_contradict_a_sweep(
    tmp_path: Path, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(name, tmp_path, **changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "truncates"),
    [
        ("axolotl", {"peft_init_lora_weights": "olora"}, False),
        ("llama-factory", {"pissa_init": True}, False),
        ("trl", {"use_dora": True}, True),
        ("axolotl", {"peft_use_dora": True}, True),
    ],
)
def test_adapters_that_cannot_be_scored(
    tmp_path: Path, name: str, changes: dict[str, Any], truncates: bool
) -> None:
    command = parse(name, tmp_path, **changes)
    if truncates:
        check_adapters(command, truncates=False)
    with pytest.raises(RequestError, match=f"{next(iter(changes))}.*take it out of the file"):
        check_adapters(command, truncates=truncates)
    harmless = {"peft_init_lora_weights": "gaussian", "peft_use_dora": False}
    check_adapters(parse("axolotl", tmp_path, **harmless), truncates=True)


def test_a_tool_and_its_file_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="add --trainer-config"):
        parse_trainer("axolotl", None)
    (tmp_path / "my.yml").write_text(yaml.safe_dump(AXOLOTL))
    with pytest.raises(RequestError, match="trainer_config goes with"):
        parse_trainer(f"{sys.executable} {{rank}} {{out}}", tmp_path / "my.yml")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RequestError, match="'axolotl' not found"):
        parse_trainer("axolotl", tmp_path / "my.yml")
