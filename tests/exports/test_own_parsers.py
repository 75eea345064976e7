"""Axolotl's and LLaMA-Factory's own parsers, where they are installed: read_schemas.py says how."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from rankwise.exports import export_files
from tests.exports.setups import SETUPS

TRAINED = [name for name, setup in SETUPS.items() if setup.task_type == "CAUSAL_LM"]


@pytest.mark.parametrize("name", TRAINED)
def test_axolotl_validates_the_config(name: str) -> None:
    pytest.importorskip("axolotl", reason="pins another torch; tests/exports/read_schemas.py says how to install it")
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    setup = SETUPS[name]
    config = yaml.safe_load(export_files(setup)["axolotl.yaml"])
    valid = validate_config(DictDefault(config))
    assert (valid.lora_r, valid.lora_alpha, valid.learning_rate) == (setup.rank, setup.lora_alpha, setup.learning_rate)
    assert (valid.warmup_steps, valid.lr_scheduler) == (setup.warmup_steps, "linear")
    assert bool(valid.lora_target_linear) == setup.everywhere
    assert bool(valid.peft_use_rslora) == setup.use_rslora
    assert bool(valid.load_in_4bit) == setup.quantization.startswith("nf4")


@pytest.mark.parametrize("name", TRAINED)
def test_llama_factory_parses_the_config_and_finds_the_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "llamafactory", reason="pins another torch; tests/exports/read_schemas.py says how to install it"
    )
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    sound = ModuleType("torchaudio")  # which its readers of text import as well
    sound.__spec__ = ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", sound)
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams.parser import _parse_train_args

    setup = SETUPS[name]
    files = export_files(setup)
    model, data, training, finetuning, _ = _parse_train_args(yaml.safe_load(files["llama_factory.yaml"]))
    assert (finetuning.lora_rank, finetuning.lora_alpha) == (setup.rank, setup.lora_alpha)
    assert finetuning.lora_target == (["all"] if setup.everywhere else list(setup.target_modules))
    assert (training.learning_rate, training.warmup_steps) == (setup.learning_rate, setup.warmup_steps)
    assert model.quantization_bit == {"none": None, "int8": 8}.get(setup.quantization, 4)
    (tmp_path / "dataset_info.json").write_text(files["dataset_info.json"])
    (described,) = get_dataset_list(data.dataset, str(tmp_path))
    assert (described.load_from, described.dataset_name) == ("file", setup.data)
    columns = [described.messages] if described.formatting == "sharegpt" else [described.prompt, described.response]
    expected = {
        "messages": ["messages"],
        "prompt-completion": ["prompt", "completion"],
        "alpaca": ["instruction", "output"],
        "text": ["text"],
    }[str(setup.data_format)]
    assert columns[: len(expected)] == expected
    assert json.loads(files["dataset_info.json"]).keys() == {"sweep_data"}
