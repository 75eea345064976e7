"""YAML text of exported configs, and the notes that several tools' files have in common."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.engine.config import FUSED_INITS
from rankwise.escaping import comment, yaml_mapping
from rankwise.exports.recipe import SAVED_BASE, Recipe
from rankwise.lora.alpha import rate_formula
from rankwise.tasks.chat_formats import DataLayout


def yaml_file(notes: Iterable[str], sections: Sequence[Mapping[str, Any]]) -> str:
    """Return a YAML file: the notes as a comment, then the sections with a blank line between."""
    return "\n".join([comment(notes), *(yaml_mapping(one) for one in sections if one)])


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
    settings = " and ".join(missing)
    return comment(
        [f"{tool} has no setting for {settings}, which this training uses: see peft_config.py."]
    )


def rank_note(recipe: Recipe) -> str:
    """Return a note on the rank, how sure it is, and the learning rate."""
    rank, truncate_to = recipe.adapter.rank, recipe.adapter.truncate_to
    how, doubt = "selected", ""
    if recipe.provisional is not None:
        how = "recommended for now"
        doubt = f"PROVISIONAL ({recipe.provisional}): another rank may be better. "
    if truncate_to is None:
        return (
            f"{doubt}Rank {rank}, {how} by rankwise, with the best learning rate tried for this "
            "rank."
        )
    after = ""
    if recipe.adapter.healing is not None:
        steps, rate = recipe.adapter.healing
        after = f"; then train that for {steps} steps at learning rate {rate:g}"
    return (
        f"{doubt}Train at rank {rank}, then truncate the adapter to the rank {how} by rankwise: "
        f"rankwise resize ADAPTER OUT --rank {truncate_to}{after}"
    )


def rate_notes(recipe: Recipe) -> list[str]:
    """Return a note on the learning rate of another rank, if A starts from random values."""
    adapter = recipe.adapter
    if adapter.init not in FUSED_INITS:
        return []
    rate = recipe.optimizer.learning_rate
    formula = rate_formula(rate, adapter.rank, adapter.lora_alpha, adapter.use_rslora)
    kept = "" if adapter.use_rslora else " With the same lora_alpha the rate stays."
    return [f"If you change the rank to r, change the learning rate to {formula}.{kept}"]


def origin_notes(recipe: Recipe) -> list[str]:
    """Return notes on the rank, the learning rate and the data that the sweep used."""
    optimizer, source = recipe.optimizer, recipe.data.source
    share = f"{100 * optimizer.warmup_ratio:g} %"
    course = {"linear": "falls to 0", "cosine": "falls to 0 along a cosine", "constant": "stays"}
    notes = [
        rank_note(recipe),
        *rate_notes(recipe),
        f"The learning rate rises over the first {optimizer.warmup_steps} of {optimizer.steps} "
        f"steps ({share}, rounded up), then {course[optimizer.lr_scheduler]}. With more or less "
        "data, keep this share.",
    ]
    if source is None:
        return notes
    if used := _data_used(recipe):
        notes.append(
            f"{used} A tool that gets these data trains on all of them, in more steps"
            f"{'' if optimizer.max_steps is None else ' if you raise max_steps'}: set the "
            f"warm-up to the same share of those steps, {share}."
        )
    if recipe.data.held_out_examples or recipe.data.test_examples:
        notes[-1] += " Do not evaluate on examples it trained on."
    if source.endswith(".tsv"):
        notes.append("This tool does not read tab-separated data: save them as JSON lines first.")
    elif recipe.data.hub_parts is None and (not Path(source).suffix or ":" in source):
        notes.append("The data are no plain file: save them as JSON lines first.")
    return notes


def _data_used(recipe: Recipe) -> str:
    """Return what the sweep did with the data, if they hold examples that it did not train on."""
    data = recipe.data
    trained = f"The sweep trained on {data.train_examples} examples"
    if data.held_out_examples or data.test_examples:
        tested = (
            f" and {data.test_examples} tested the recommended adapter"
            if data.test_examples
            else ""
        )
        compared = f"{data.held_out_examples} compared the ranks{tested}"
        return f"{trained} of these data. Of the others, {compared}."
    return f"{trained}, its limit; the data may hold more." if data.limited else ""


def adapter_only_notes(recipe: Recipe, tool: str) -> list[str]:
    """Return notes for a file with the adapter alone, for a task that the tool does not train."""
    return [
        f"Only the adapter's settings: this sweep's task is {recipe.model.task_type}, and {tool} "
        "trains causal language models. Paste them into your own config, with its own model, data "
        f"and learning rate: the rate found here ({recipe.optimizer.learning_rate:g}) is for the "
        "sweep's model and task. peft_config.py has the whole training.",
        rank_note(recipe),
    ]


def common_notes(recipe: Recipe, tool: str) -> list[str]:
    """Return `origin_notes`, and how to save a GGUF base for a tool that does not load it."""
    if not recipe.model.is_gguf:
        return origin_notes(recipe)
    return [
        *origin_notes(recipe),
        f"The base is a GGUF file, which {tool} does not load. First load the base and its "
        "tokenizer as peft_config.py describes, and save both in one directory with "
        f"save_pretrained({SAVED_BASE!r}). This config reads that directory.",
    ]


def data_source(recipe: Recipe, files: dict[str, Any]) -> dict[str, Any]:
    """Return a hub's data set as arguments of `datasets.load_dataset`, or ``files`` for files."""
    if recipe.data.hub_parts is None:
        return files
    name, config, split = recipe.data.hub_parts
    return {"path": name, **({} if config is None else {"name": config}), "split": split}


def quoted_columns(layout: DataLayout) -> str:
    """Return the column names as in "'instruction', 'input' and 'output'"."""
    extras = layout.extras
    own = [repr(column) for part, column in layout.columns.items() if part not in extras]
    *others, last = own
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
    question = repr(layout.columns.get("instruction", layout.columns.get("prompt")))
    if "input" in layout.columns:
        question += f" and, after a blank line, {layout.columns['input']!r} if it is not empty"
    elif "context" in layout.columns:
        question += f" after {layout.columns['context']!r} and a blank line"
    answer = layout.columns.get("output", layout.columns.get("completion"))
    return (
        f"rankwise trained on the columns {quoted_columns(layout)} as chats in the tokenizer's "
        f"chat template, which {tool} applies to messages only. First save each row as a list in a "
        f"column 'messages': a user message with {question}, and an assistant message with "
        f"{answer!r}."
    )


def save_joined_note(layout: DataLayout, tool: str) -> str:
    """Return a note on how to save prompts and completions, both messages, for a tool."""
    prompt, completion = layout.columns["prompt"], layout.columns["completion"]
    return (
        f"{tool} reads whole dialogues. First save the messages of {prompt!r}, followed by those "
        f"of {completion!r}, as one list in a column 'messages'. It also learns the answers in "
        f"{prompt!r}, if there are any; rankwise learnt those in {completion!r} alone."
    )


def unread_notes(layout: DataLayout, tool: str, reads: Container[str] = ()) -> list[str]:
    """Return a note on what a tool does not read of the dialogues as rankwise did, if anything.

    ``reads`` are the parts of the layout, and the phrases in ``rewritten``, that it reads.
    """
    parts = [f"{part} in {column!r}" for part, column in layout.extras.items() if part not in reads]
    unread = [*parts, *(phrase for phrase in layout.rewritten if phrase not in reads)]
    if not unread:
        return []
    return [
        f"Beside {quoted_columns(layout)}, {tool} does not read, or not as rankwise did: "
        f"{', '.join(unread)}. First save each row as the messages that rankwise trained on; "
        "rankwise sweep --dry-run --show 3 shows them, with what is learnt."
    ]
