"""What a sweep by the user's trainer leaves: its command with the chosen values, and a card."""

import shlex
from pathlib import Path
from typing import Any

from rankwise.decide import Decision
from rankwise.decide.summary import decision_sentences
from rankwise.escaping import comment, markdown, without_directories
from rankwise.formatting import how_sure
from rankwise.lora.alpha import whole_as_int
from rankwise.store.directory import SweepStore
from rankwise.store.durable import write_synced
from rankwise.store.records import TrialRecord, read_trial
from rankwise.trainers.command import Command
from rankwise.trainers.engine import as_word
from rankwise.trainers.tools import ToolCommand, Trainer

CARD = """---
library_name: peft
tags: [lora, rankwise]
---

# LoRA adapter of rank {rank}{mark}

{sentences}

Trained by the command in `export/command.txt` of the sweep: rank {rank}, `lora_alpha` {alpha:g},
learning rate {rate:g}, seed {seed}.
"""


def write_trainer_exports(
    store: SweepStore,
    command: Trainer,
    trial_name: str | None,
    decision: Decision,
    data: object,
    place: Path,
) -> None:
    """Write ``export/`` and the card in ``best/``, nothing if no rank is recommended.

    Args:
        store: the sweep.
        command: the user's trainer.
        trial_name: the chosen trial; None if there is none.
        decision: the decision on it.
        data: the user's data, all of which the chosen training reads; None without data.
        place: directory that holds ``best/`` and gets ``export/``.

    Raises:
        OSError: A file cannot be written.
    """
    if trial_name is None:
        return
    chosen = trained = read_trial(store.trials_directory / trial_name)
    if chosen.truncated_from is not None:
        trained = read_trial(store.trials_directory / chosen.truncated_from)
    notes = comment(_notes(decision, chosen, trained))
    for name, text in chosen_files(command, trained, data).items():
        start = "" if name.endswith(".json") else notes  # JSON has no comments
        write_synced(place / "export" / name, (start + text).encode())
    if not (place / "best").is_dir():  # judged by figures, without an adapter
        return
    sentences = decision_sentences(decision, "score")[:2]
    card = CARD.format(
        rank=chosen.rank,
        mark=" (provisional)" if decision.provisional else "",
        sentences="\n\n".join(markdown(without_directories(each)) for each in sentences),
        alpha=trained.lora_alpha,
        rate=trained.learning_rate,
        seed=trained.seed,
    )
    write_synced(place / "best" / "README.md", card.encode())


def chosen_files(command: Trainer, trained: TrialRecord, data: object) -> dict[str, str]:
    """Return the user's command with the values of a trial, and a tool's file with them."""
    values: dict[str, Any] = {
        "rank": trained.rank,
        "lora_alpha": whole_as_int(float(trained.lora_alpha)),
        "learning_rate": trained.learning_rate,
        "seed": trained.seed,
        "use_rslora": trained.use_rslora,
        "trial": trained.name,
        "out": "adapter",
        "train_data": "" if data is None else str(data),
    }
    files, name = {}, command.config_name
    if isinstance(command, ToolCommand):
        name = command.file.path.name
    if isinstance(command, ToolCommand) or (isinstance(command, Command) and command.has_config):
        files[name] = command.config_text(values)
    texts = {each: as_word(value) for each, value in values.items()}
    files["command.txt"] = shlex.join(command.fill({**texts, "config": name})) + "\n"
    return files


def _notes(decision: Decision, chosen: TrialRecord, trained: TrialRecord) -> list[str]:
    rank, doubt = chosen.rank, ""
    if decision.provisional:
        known = how_sure(decision.confidence_reached, decision.confidence)
        doubt = f"PROVISIONAL ({known}): another rank may be better. "
    if trained is not chosen:
        return [
            f"{doubt}Train at rank {trained.rank}, then truncate: "
            f"rankwise resize adapter OUT --rank {rank}"
        ]
    return [f"{doubt}Rank {rank}, with the best learning rate tried for this rank."]
