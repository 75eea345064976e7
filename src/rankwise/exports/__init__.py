"""Exports: configs that train as the recommended trial did, and its adapter's model card."""

from dataclasses import replace
from pathlib import Path

from rankwise.decide import Decision
from rankwise.exports.axolotl import axolotl_config
from rankwise.exports.llama_factory import dataset_info, llama_factory_config
from rankwise.exports.model_card import write_card
from rankwise.exports.peft import peft_config
from rankwise.exports.recipe import Recipe, read_recipe
from rankwise.exports.trl import trl_config
from rankwise.formatting import how_sure
from rankwise.store.durable import write_synced
from rankwise.store.records import read_sweep


def how_provisional(decision: Decision) -> str | None:
    """Return how sure a provisional rank is; None if the rank is selected."""
    if not decision.provisional:
        return None
    return how_sure(decision.confidence_reached, decision.confidence)


def export_files(recipe: Recipe) -> dict[str, str]:
    """Return the files of ``export/`` as ``{name: text}``."""
    files = {
        "peft_config.py": peft_config(recipe),
        "trl.yaml": trl_config(recipe),
        "axolotl.yaml": axolotl_config(recipe),
        "llama_factory.yaml": llama_factory_config(recipe),
    }
    if recipe.model.is_causal_lm:
        files["dataset_info.json"] = dataset_info(recipe)
    return files


def write_exports(directory: Path, trial_name: str | None, decision: Decision, place: Path) -> None:
    """Write ``export/`` and the card in ``best/``, nothing without a trial to recommend.

    A provisional rank is marked in every file.

    Args:
        directory: The sweep directory.
        trial_name: The recommended trial.
        decision: The decision on it.
        place: Directory that holds ``best/`` and gets ``export/``.

    Raises:
        OSError: A file cannot be written.
    """
    if trial_name is None:
        return
    sweep = read_sweep(directory)
    assert sweep is not None  # a recommended trial is a trial of a sweep
    recipe = replace(read_recipe(directory, trial_name), provisional=how_provisional(decision))
    for name, text in export_files(recipe).items():
        write_synced(place / "export" / name, text.encode())
    write_card(place / "best", decision, recipe, sweep)
