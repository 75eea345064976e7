"""YAML text of exported configs, and the notes that several tools' files have in common."""

import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.exports.recipe import SAVED_BASE, Recipe
from rankwise.tasks.chat_formats import DataLayout

WIDTH = 100


def comment(notes: Iterable[str]) -> str:
    """Return notes as comment lines, each note on lines of its own."""
    lines = []
    for note in notes:
        lines += textwrap.wrap(note, WIDTH - 2, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def yaml_text(notes: Iterable[str], sections: Sequence[Mapping[str, Any]]) -> str:
    """Return a YAML file: the notes as a comment, then the sections with a blank line between."""
    import yaml

    blocks = [comment(notes)]
    for section in sections:
        if section:
            blocks.append(yaml.safe_dump(dict(section), sort_keys=False, allow_unicode=True))
    return "\n".join(blocks)


def missing_settings(
    recipe: Recipe, tool: str, *, inits: Container[str], loraplus: bool = True
) -> str | None:
    """Return a comment that replaces the config if a tool cannot express the recipe; else None.

    Args:
        recipe: The recipe.
        tool: Name of the tool.
        inits: Initialisations that the tool has.
        loraplus: Whether the tool has LoRA+.
    """
    missing = []
    if recipe.optimizer.loraplus_ratio != 1.0 and not loraplus:
        missing.append("LoRA+")
    if recipe.adapter.init not in inits:
        missing.append(f"the initialisation {recipe.adapter.init}")
    alpha = float(recipe.adapter.lora_alpha)
    if not alpha.is_integer():
        missing.append(f"a lora_alpha that is not a whole number ({alpha:g})")
    if not missing:
        return None
    return comment(
        [
            f"{tool} has no setting for {' and '.join(missing)}, which this training uses: "
            "see peft_config.py."
        ]
    )


def origin_notes(recipe: Recipe) -> list[str]:
    """Return notes on the rank, the learning rate and the data that the sweep used."""
    adapter, optimizer, source = recipe.adapter, recipe.optimizer, recipe.data.source
    if adapter.truncate_to is None:
        rank = (
            f"Rank {adapter.rank}, which rankwise selected, "
            "with the best learning rate that it tried for this rank."
        )
    else:
        rank = (
            f"Train at rank {adapter.rank}, then truncate the adapter to the rank that rankwise "
            f"selected: rankwise resize ADAPTER OUT --rank {adapter.truncate_to}"
        )
    notes = [
        rank,
        f"The learning rate rises over the first {optimizer.warmup_steps} of {optimizer.steps} "
        f"steps ({100 * optimizer.warmup_share:g} %, rounded up), then falls to 0. "
        "With more or less data, keep this share.",
        *_unused_data_notes(recipe),
    ]
    if (source or "").endswith(".tsv"):
        notes.append(
            "The data are tab-separated, which this tool does not read: "
            "save them as JSON lines first."
        )
    elif source is not None and recipe.data.hub_parts is None and not Path(source).suffix:
        notes.append("The data are a directory that datasets saved: save them as JSON lines first.")
    return notes


def _unused_data_notes(recipe: Recipe) -> list[str]:
    """Return a note if the data hold examples that the sweep did not train on."""
    data = recipe.data
    if data.source is None:
        return []
    warm_up = (
        "A tool that gets these data trains on all of them, in more steps: set the warm-up to the "
        f"same share of those steps, {100 * recipe.optimizer.warmup_share:g} %."
    )
    if data.held_out_examples or data.test_examples:
        tested = ""
        if data.test_examples:
            tested = f" and {data.test_examples} tested the chosen adapter"
        return [
            f"The sweep trained on {data.train_examples} examples of these data. Of the others, "
            f"{data.held_out_examples} compared the ranks{tested}. {warm_up} "
            "Do not evaluate on examples it trained on."
        ]
    if data.limited:
        return [
            f"The sweep trained on {data.train_examples} examples, its limit; the data may hold "
            f"more. {warm_up}"
        ]
    return []


def adapter_only_notes(recipe: Recipe, tool: str) -> list[str]:
    """Return notes for a file with the adapter alone, for a task that the tool does not train."""
    return [
        f"Only the adapter's settings: this sweep's task is {recipe.model.task_type}, and {tool} "
        "trains causal language models. Paste them into your own config, with its own model, data "
        f"and learning rate: the rate found here ({recipe.optimizer.learning_rate:g}) is for the "
        "sweep's model and task. peft_config.py has the whole training.",
        *origin_notes(recipe)[:1],
    ]


def gguf_notes(recipe: Recipe, tool: str) -> list[str]:
    """Return a note on how to save a GGUF base for a tool that does not load such files."""
    if not recipe.model.is_gguf:
        return []
    return [
        f"The base is a GGUF file, which {tool} does not load. First load the base and its "
        "tokenizer as peft_config.py describes, and save both in one directory with "
        f"save_pretrained({SAVED_BASE!r}). This config reads that directory."
    ]


def data_source(recipe: Recipe, files: dict[str, Any]) -> dict[str, Any]:
    """Return a hub's data set as arguments of `datasets.load_dataset`, else ``files``."""
    if recipe.data.hub_parts is None:
        return files
    name, config, split = recipe.data.hub_parts
    return {"path": name, **({} if config is None else {"name": config}), "split": split}


def quoted_columns(layout: DataLayout) -> str:
    """Return the column names as in "'instruction', 'input' and 'output'"."""
    *others, last = map(repr, layout.columns.values())
    return f"{', '.join(others)} and {last}" if others else last


def save_messages_note(layout: DataLayout, tool: str, column: str) -> str:
    """Return a note on how to save messages that a tool does not read as they are."""
    return (
        f"{tool} does not read the messages of column {quoted_columns(layout)} as they are. First "
        f"save them, as JSON lines or Parquet, in a column {column!r} of lists. Each message needs "
        "the keys role and content, and roles such as user, assistant and system."
    )


def save_chats_note(layout: DataLayout, tool: str) -> str:
    """Return a note on how to save Alpaca's instructions for a tool that makes no chats of them."""
    question = repr(layout.columns["instruction"])
    if "input" in layout.columns:
        question += f" and, after a blank line, {layout.columns['input']!r} if it is not empty"
    return (
        f"rankwise trained on the columns {quoted_columns(layout)} as chats in the tokenizer's "
        f"chat template, which {tool} applies to messages only. First save each row as a list in a "
        f"column 'messages': a user message with {question}, and an assistant message with "
        f"{layout.columns['output']!r}."
    )
