"""For others to use: configs that train as the chosen trial was trained, and the adapter's model card."""

import shutil
from pathlib import Path

from rankwise.decide import Decision
from rankwise.exports.axolotl import axolotl_config
from rankwise.exports.llama_factory import dataset_info, llama_factory_config
from rankwise.exports.model_card import write_card
from rankwise.exports.peft import peft_config
from rankwise.exports.recipe import TrainingSetup, read_setup
from rankwise.exports.trl import trl_config
from rankwise.exports.yaml_text import trains_causal_lms
from rankwise.store.directory import write_whole
from rankwise.store.records import read_sweep


def export_files(setup: TrainingSetup) -> dict[str, str]:
    """Return the files of ``export/`` by name."""
    files = {
        "peft_config.py": peft_config(setup),
        "trl.yaml": trl_config(setup),
        "axolotl.yaml": axolotl_config(setup),
        "llama_factory.yaml": llama_factory_config(setup),
    }
    if trains_causal_lms(setup):
        files["dataset_info.json"] = dataset_info(setup)
    return files


def write_exports(directory: Path, trial_name: str | None, decision: Decision) -> None:
    """Write ``export/`` and the model card of ``best/`` for a sweep's chosen trial, or remove ``export/``.

    Args:
        directory: the sweep directory, with ``best/`` in it.
        trial_name: the chosen trial; None where there is none.
        decision: that chose it.

    Raises:
        RankwiseError: something cannot be written.
    """
    shutil.rmtree(directory / "export", ignore_errors=True)
    if trial_name is None:
        return
    sweep = read_sweep(directory)
    assert sweep is not None  # a chosen trial is a trial of a sweep
    setup = read_setup(directory, trial_name)
    for name, text in export_files(setup).items():
        write_whole(directory / "export" / name, text.encode())
    write_card(directory / "best", decision, setup, sweep)
