"""The file of a sweep by a known tool, made from the user's own file for that tool."""

from pathlib import Path
from typing import Any, TypeGuard

from rankwise.errors import RequestError
from rankwise.escaping import comment
from rankwise.exports.yaml_text import yaml_file
from rankwise.tasks.sources import find_local
from rankwise.trainers.tools import TOOLS, TRL_METHODS, find_tool, read_tool_file


def sweep_file(trainer: str, config: Path) -> str:
    """Return the text of a commented sweep file.

    Args:
        trainer: the tool.
        config: the user's file for it.

    Raises:
        RequestError: the tool is unknown, or the file cannot serve a sweep.
    """
    tool = find_tool(trainer)
    if tool is None:
        known = ", ".join([*TOOLS, "trl", *(f"'trl {name}'" for name in TRL_METHODS)])
        raise RequestError(f"trainer {trainer!r}: allowed are {known}")
    values = read_tool_file(trainer, tool, config).values
    keys = list(tool.keys.values())
    start = comment(
        [
            "Which rank does this training need? rankwise sweep FILE, with the name of this file.",
            f"Each trial trains from a copy of {config.name} with its own {', '.join(keys[:-1])} "
            f"and {keys[-1]}; all else stays as it is there.",
        ]
    )
    trained = {"trainer": trainer, "trainer-config": str(config), "model": values[tool.base]}
    rate = values.get("learning_rate")
    usual = ""
    if _is_number(rate):
        usual = f" Yours was {rate}: give it here to keep it for all ranks."
    search = {
        "ranks": [4, 8, 16, 32],
        "seeds": 2,
        "lora-alpha": _alpha_policy(values, tool.keys),
        "learning-rate": "auto",
    }
    parts = [
        start,
        yaml_file(["Who trains, and the base: rankwise loads it once to score."], [trained]),
        _data_part(values),
        yaml_file(
            [
                "What is tried. lora-alpha: your rule, as r, 2r, fixed:ALPHA or rslora:ALPHA.",
                "auto searches the rate of a middle rank, in a few more trials, and carries it to "
                f"the others by a law.{usual}",
            ],
            [search],
        ),
        yaml_file(
            ["Held-out loss (nats per token) that a smaller rank may cost."],
            [{"margin": 0.02, "out": "rankwise-out"}],
        ),
    ]
    return "\n".join(parts)


def _data_part(values: dict[str, Any]) -> str:
    """Return the part about data: a file that the tool's own file names, or a place for it."""
    notes = [
        "Data that score the adapters. A fifth of a file that your config names is held out, and "
        "each trial trains on a copy without those rows. With eval-data, a file that your config "
        "does not name, all rows train."
    ]
    for text in _file_names(values):
        return yaml_file(notes, [{"data": text}])
    return yaml_file(notes, []) + "# data: train.jsonl\n# eval-data: held_out.jsonl\n"


def _file_names(content: Any) -> list[str]:
    """Return the texts below a data set that name files."""
    datasets = content.get("datasets")
    entries = datasets if isinstance(datasets, list) else []
    found = [content.get("dataset_name")]
    for entry in entries:
        if isinstance(entry, dict):
            found += [entry.get("path"), entry.get("data_files")]
    return [text for text in found if isinstance(text, str) and find_local(Path(text))]


def _alpha_policy(values: dict[str, Any], keys: Any) -> str:
    """Return the policy that a file's alpha follows at its own rank."""
    rank, alpha = values.get(keys["rank"]), values.get("lora_alpha")
    if not _is_number(alpha):
        return "r"
    if values.get(keys["use_rslora"]):
        return f"rslora:{alpha:g}"
    if _is_number(rank) and alpha in (rank, 2 * rank):
        return "r" if alpha == rank else "2r"
    return f"fixed:{alpha:g}"


def _is_number(value: Any) -> TypeGuard[float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")
