"""Settings as text: YAML with comments, and what each tool's file says at its top."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.exports.recipe import CAUSAL_LM, SAVED_BASE, TrainingSetup

WIDTH = 110


def comment(sentences: Iterable[str]) -> str:
    """Write sentences as comment lines, each sentence beginning a line."""
    lines = [line for text in sentences for line in textwrap.wrap(text, WIDTH - 2)]
    return "".join(f"# {line}\n" for line in lines)


def yaml_text(sentences: Iterable[str], sections: Sequence[Mapping[str, Any]]) -> str:
    """Write a YAML file: comment, then sections with a blank line between."""
    import yaml

    blocks = [
        yaml.safe_dump(dict(section), sort_keys=False, allow_unicode=True)
        for section in sections
        if section
    ]
    return "\n".join([comment(sentences), *blocks])


def origin(setup: TrainingSetup) -> list[str]:
    """Say what the values are."""
    lines = [
        f"Rank {setup.rank}, as rankwise selected it, at the best of the learning rates tried for this rank.",
        f"The rate rises over the first {setup.warmup_steps} of {setup.steps} steps ({100 * setup.warmup_share:g} %, "
        "rounded up) and falls to 0: with more or less data, keep that share.",
        *_left_out(setup),
    ]
    if setup.keep_rank is not None:
        lines[0] = (
            f"Train at rank {setup.rank}, then cut the adapter: rankwise resize ADAPTER OUT --rank {setup.keep_rank} "
            "(the rank that rankwise selected to keep)."
        )
    if (setup.data or "").endswith(".tsv"):
        lines.append(
            "The data are tab-separated, which this tool does not read: save them as JSON lines first."
        )
    elif setup.data is not None and setup.hub_data is None and not Path(setup.data).suffix:
        lines.append("The data are a directory that datasets saved: save them as JSON lines first.")
    return lines


def gguf_base(setup: TrainingSetup, tool: str) -> list[str]:
    """Say how a base becomes one that a tool loads, which loads no GGUF files."""
    if not setup.from_gguf:
        return []
    return [
        f"The base is a GGUF file, which {tool} does not load. First load it and its tokenizer as peft_config.py says "
        f"and write both into one directory, each by save_pretrained({SAVED_BASE!r}): that directory is the base here."
    ]


def _left_out(setup: TrainingSetup) -> list[str]:
    """Say that the data hold more than the sweep trained on, which a tool that is given the data does not know."""
    others = setup.held_out_examples + setup.test_examples
    if setup.data is None or setup.train_examples is None or not (others or setup.limited):
        return []
    then = (
        "A tool that is given the data trains on all, in more steps: set the warm-up to the same share of those, "
        f"{100 * setup.warmup_share:g} %."
    )
    if not others:
        return [
            f"The sweep trained on {setup.train_examples} examples and was allowed no more; the data may hold others. "
            f"{then}"
        ]
    tested = f" and {setup.test_examples} the chosen adapter" if setup.test_examples else ""
    return [
        f"The sweep trained on {setup.train_examples} examples of the data; of the rest, {setup.held_out_examples} "
        f"judged the ranks{tested}. {then} What it has trained on judges it no more."
    ]


def data_source(setup: TrainingSetup, files: dict[str, Any]) -> dict[str, Any]:
    """Return a hub's data set under the names that `datasets.load_dataset` has for its parts, else ``files``."""
    if setup.hub_data is None:
        return files
    name, config, split = setup.hub_data
    return {"path": name, **({} if config is None else {"name": config}), "split": split}


def adapter_only(setup: TrainingSetup, tool: str) -> list[str]:
    """Say that a tool does not train the sweep's task, and what that means for the file."""
    return [
        f"Only the adapter's settings: this sweep's task is {setup.task_type}, and {tool} trains causal language "
        "models. "
        "Paste them into a config of your own, with its own model, data and learning rate: the rate found here "
        f"({setup.learning_rate:g}) holds for the sweep's model and task. peft_config.py has the whole training."
    ]


def trains_causal_lms(setup: TrainingSetup) -> bool:
    """Whether the task is the one that TRL's SFT, Axolotl and LLaMA-Factory train."""
    return setup.task_type == CAUSAL_LM


def without(setup: TrainingSetup, tool: str, **lacking: bool) -> str | None:
    """Return what a file says instead of settings where a tool cannot express them; None where it can.

    Args:
        setup: of the training.
        tool: its name.
        **lacking: further settings that the tool does not have, true where this training needs one.
    """
    reasons = [name.replace("_", " ") for name, needed in lacking.items() if needed]
    if float(setup.lora_alpha) != int(setup.lora_alpha):
        reasons.append(f"a lora_alpha that is no whole number ({setup.lora_alpha:g})")
    if not reasons:
        return None
    return comment(
        [
            f"{tool} has no setting for {' and '.join(reasons)}, which this training uses: see peft_config.py."
        ]
    )
