"""Axolotl's and LLaMA-Factory's own parsers, where they are installed: read_schemas.py says how."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rankwise.exports import export_files
from tests.exports.data_files import CASES, asks_for, kept, tokenizer_for
from tests.exports.setups import SETUPS

TRAINED = [name for name, setup in SETUPS.items() if setup.task_type == "CAUSAL_LM"]


@pytest.mark.parametrize("name", TRAINED)
def test_axolotl_validates_the_config(name: str) -> None:
    pytest.importorskip(
        "axolotl", reason="pins another torch; tests/exports/read_schemas.py says how to install it"
    )
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    setup = SETUPS[name]
    config = yaml.safe_load(export_files(setup)["axolotl.yaml"])
    valid = validate_config(DictDefault(config))
    assert (valid.lora_r, valid.lora_alpha, valid.learning_rate) == (
        setup.rank,
        setup.lora_alpha,
        setup.learning_rate,
    )
    assert (valid.warmup_steps, valid.lr_scheduler) == (setup.warmup_steps, "linear")
    assert valid.excess_length_strategy == "truncate"
    assert bool(valid.lora_target_linear) == setup.everywhere
    assert bool(valid.peft_use_rslora) == setup.use_rslora
    assert bool(valid.load_in_4bit) == setup.quantization.startswith("nf4")


def _let_llama_factory_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "llamafactory",
        reason="pins another torch; tests/exports/read_schemas.py says how to install it",
    )
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    sound = ModuleType("torchaudio")  # which its readers of text import as well
    sound.__spec__ = ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", sound)


@pytest.mark.parametrize("name", TRAINED)
def test_llama_factory_parses_the_config_and_finds_the_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_llama_factory_in(monkeypatch)
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams.parser import _parse_train_args

    setup = SETUPS[name]
    assert setup.layout is not None
    files = export_files(setup)
    model, data, training, finetuning, _ = _parse_train_args(
        yaml.safe_load(files["llama_factory.yaml"])
    )
    assert (finetuning.lora_rank, finetuning.lora_alpha) == (setup.rank, setup.lora_alpha)
    assert finetuning.lora_target == (["all"] if setup.everywhere else list(setup.target_modules))
    assert (training.learning_rate, training.warmup_steps) == (
        setup.learning_rate,
        setup.warmup_steps,
    )
    assert model.quantization_bit == {"none": None, "int8": 8}.get(setup.quantization, 4)
    (tmp_path / "dataset_info.json").write_text(files["dataset_info.json"])
    (described,) = get_dataset_list(data.dataset, str(tmp_path))
    assert (described.load_from, described.dataset_name) == ("file", setup.data)
    columns = (
        [described.messages]
        if described.formatting == "sharegpt"
        else [described.prompt, described.response]
    )
    expected = {
        "messages": ["messages"],
        "prompt-completion": ["prompt", "completion"],
        "alpaca": ["instruction", "output"],
        "text": ["text"],
    }[setup.layout.data_format]
    assert columns[: len(expected)] == expected
    assert json.loads(files["dataset_info.json"]).keys() == {"sweep_data"}


def _texts(tokenizer: Any, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return each example's text and what of it is to be told, without blanks, which tools put in tokens their way."""
    # Nothing comes before the first token, so that its label counts in no loss.
    told = [[label for label in row["labels"][1:] if label != -100] for row in rows]
    whole = [row["input_ids"] for row in rows]
    return [
        ("".join(tokenizer.decode(one).split()), "".join(tokenizer.decode(two).split()))
        for one, two in zip(whole, told, strict=True)
    ]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), CASES)
def test_axolotl_trains_on_what_rankwise_trained_on(
    name: str, template: bool, tmp_path: Path
) -> None:
    pytest.importorskip(
        "axolotl", reason="pins another torch; tests/exports/read_schemas.py says how to install it"
    )
    from axolotl.datasets import TokenizedPromptDataset
    from axolotl.prompt_strategies import load
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    setup, rows = kept(name, tmp_path, template=template)
    text, tokenizer = export_files(setup)["axolotl.yaml"], tokenizer_for(template)
    config = validate_config(DictDefault(yaml.safe_load(text)))
    (described,) = config.datasets
    data = load_dataset(described["ds_type"], data_files=described["path"], split="train")
    if asks_for(text) is not None:
        assert name == "two pairs of keys" or (name.startswith("alpaca") and template)
        return
    if isinstance(described["type"], str):
        strategy = load(described["type"], tokenizer, config, described)
    else:  # as its get_dataset_wrapper does, which imports all of Axolotl
        strategy = load("user_defined", tokenizer, config, described["type"].to_dict())
    made = TokenizedPromptDataset(strategy, data)
    theirs = [made[row["row"]] for row in rows]
    assert _texts(tokenizer, theirs) == _texts(tokenizer, rows)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), CASES)
def test_llama_factory_trains_on_what_rankwise_trained_on(
    name: str, template: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_llama_factory_in(monkeypatch)
    from llamafactory.data.loader import get_dataset
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams.parser import get_train_args

    setup, rows = kept(name, tmp_path, template=template)
    files, tokenizer = export_files(setup), tokenizer_for(template)
    (tmp_path / "dataset_info.json").write_text(files["dataset_info.json"])
    config = yaml.safe_load(files["llama_factory.yaml"]) | {
        "dataset_dir": str(tmp_path),
        "use_cpu": True,
    }
    model, data, training, finetuning, _ = get_train_args(config)
    form = get_template_and_fix_tokenizer(tokenizer, data)
    if asks_for(files["llama_factory.yaml"]) is not None:
        assert name in ("sharegpt, several names", "two pairs of keys", "messages as text")
        return
    made = get_dataset(form, model, data, training, finetuning.stage, tokenizer)["train_dataset"]
    theirs = [{"labels": made[row["row"]]["input_ids"], **made[row["row"]]} for row in rows]
    expected = _texts(tokenizer_for(template), rows)
    if setup.layout.data_format == "prompt-completion":  # as the file says
        expected = [
            (whole.removesuffix("<|end|>"), told.removesuffix("<|end|>"))
            for whole, told in expected
        ]
    if name == "alpaca" and not template:
        heading = ",pairedwithaninputthatprovidesfurthercontext"
        expected = [
            (whole.replace(heading, "").replace("###Input:", ""), told) for whole, told in expected
        ]
    assert _texts(tokenizer, theirs) == expected
