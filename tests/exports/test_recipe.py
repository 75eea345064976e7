import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rankwise.exports import export_files
from rankwise.exports.recipe import read_recipe
from rankwise.lora import read_adapter, write_adapter
from rankwise.lora.conversion import for_original_base
from rankwise.sweeps.config import SweepConfig
from tests.exports.tools import run
from tests.factories import seal_trial, write_sealed
from tests.tiny_models import save_tiny_lm


def test_the_layout_of_the_data_is_read_from_the_sweep(swept: Path, tmp_path: Path) -> None:
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    data, lm = tmp_path / "data.jsonl", tmp_path / "lm"
    talk = [
        [{"from": "human", "value": f"the film {n}"}, {"from": "gpt", "value": f"was {n}"}]
        for n in range(20)
    ]
    pd.DataFrame({"conversations": talk}).to_json(data, orient="records", lines=True)
    config = SweepConfig(
        model=str(save_tiny_lm("llama", lm)), data=data, ranks=(2, 4), out=tmp_path / "out"
    )
    with open_run(config, Silent()):
        task = json.loads((tmp_path / "out" / "sweep.json").read_text())["task"]

    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())
    write_sealed(copy / "sweep.json", {**sweep, "task": task})
    recipe = read_recipe(copy, trial)
    assert recipe.data.layout is not None
    assert recipe.data.layout.keys == (("from", "value"),)
    assert recipe.data.layout.columns == {"messages": "conversations"}
    assert (recipe.data.chat_template, recipe.data.answers_marked) == (True, False)


@pytest.mark.parametrize(
    ("tokens", "examples"), [(None, 12), (6 * 64, 6), (5 * 64, 4), (64, 1), (1, 1)]
)
def test_a_micro_batch_is_a_divisor_of_the_batch_within_the_tokens(
    swept: Path, tmp_path: Path, tokens: int | None, examples: int
) -> None:
    shutil.copytree(swept, tmp_path / "out")
    path = tmp_path / "out" / "sweep.json"
    sweep = json.loads(path.read_text())
    sweep["settings"] |= {"batch_size": 12, "max_length": 64}
    sweep["machine"] |= {"micro_batch_tokens": None, "gradient_checkpointing": "auto"}
    sweep["chosen"] |= {"micro_batch_tokens": tokens, "gradient_checkpointing": "on"}
    write_sealed(path, sweep)
    name = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    optimizer = read_recipe(tmp_path / "out", name).optimizer
    assert (optimizer.micro_batch_size, optimizer.accumulated_batches) == (examples, 12 // examples)
    assert optimizer.gradient_checkpointing


def test_an_adapter_saved_at_twice_its_rank_gets_the_rank_of_its_training(
    swept: Path, tmp_path: Path
) -> None:
    """PiSSA and OLoRA adapters are saved that way for the original base."""
    name = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    shutil.copytree(swept, tmp_path / "out")
    saved = tmp_path / "out" / "trials" / name / "adapter"
    adapter = read_adapter(saved)
    shutil.rmtree(saved)
    write_adapter(for_original_base(adapter, adapter), saved)
    seal_trial(saved.parent)
    on_disk = json.loads((saved / "adapter_config.json").read_text())
    assert (on_disk["r"], on_disk["lora_alpha"]) == (4, 4)
    config = run(export_files(read_recipe(tmp_path / "out", name))["peft_config.py"])["lora_config"]
    assert (config.r, config.lora_alpha, config.use_rslora) == (2, 2, False)
