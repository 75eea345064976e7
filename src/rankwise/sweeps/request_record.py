"""The record of a sweep's request, by which a later command recognises the sweep."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rankwise.models.fingerprint import model_digests
from rankwise.store.digests import digest_of
from rankwise.store.records import Fingerprints, SweepPaths, SweepRecord, TaskRecord
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.environment import environment
from rankwise.tasks import samples
from rankwise.tasks.base import Task
from rankwise.tasks.chats import marks_assistant_tokens
from rankwise.tasks.readers import file_fingerprint

if TYPE_CHECKING:
    from rankwise.models.base_model import BaseModel

# These settings do not affect results, so they do not identify a sweep.
NOT_IDENTIFYING = (
    "extend", "allow_duplicates", "budget", "report_to", "require_confidence", "diagnose", "out",
    "trials_at_once", "trial_timeout",
)  # fmt: skip
NONE = "none"  # fingerprint of what a trainer that measures by itself keeps to itself
# These change results by rounding at most, as another machine does.
MACHINE = (
    "device", "max_memory", "gradient_checkpointing", "micro_batch_tokens", "attention",
    "checkpoint_minutes",
)  # fmt: skip


def request_record(
    config: SweepConfig,
    task: Task,
    base: "BaseModel | None",
    chosen: Mapping[str, Any],
    tokens: str = NONE,
) -> SweepRecord:
    """Return the record of a request; a file is identified by its content, so it may be moved.

    Args:
        config: the request.
        task: its data.
        base: its model; None if the user's trainer measures by itself.
        chosen: what the memory plan chose, see `SweepRecord`.
        tokens: digest of the tokenised examples.
    """
    from rankwise.models.device import precision_name

    settings = {**config.as_dict(), "max_length": max_length(config, task)}
    for name in NOT_IDENTIFYING:
        del settings[name]
    if base is not None:  # "auto" is no value
        settings["precision"] = precision_name(base.compute_dtype)
    if config.trainer_config is not None:  # known by its content, wherever it lies
        digest = file_fingerprint(config.trainer_config)[:16]
        settings["trainer_config"] = f"{config.trainer_config.name}, fingerprint {digest}"
    machine = {name: settings.pop(name) for name in MACHINE}
    paths = SweepPaths(**{name: settings.pop(name) for name in ("model", "data", "eval_data")})
    command = " ".join(sys.argv) if sys.argv[0].endswith("rankwise") else "rankwise.sweep(...)"
    return SweepRecord(
        settings=settings,
        machine=machine,
        chosen=chosen,
        paths=paths,
        fingerprints=_fingerprints(config, base, tokens),
        task=_task_record(task, base),
        environment=environment(None if base is None else base.device),
        command=command,
    )


def _fingerprints(config: SweepConfig, base: "BaseModel | None", tokens: str) -> Fingerprints:
    """Return the digests of data and model; none where the user's trainer keeps both to itself."""
    eval_data = None if config.eval_data is None else file_fingerprint(config.eval_data)
    if base is None:
        return Fingerprints(NONE, eval_data, NONE, NONE, NONE, NONE)
    model, template = model_digests(model_name(config)), base.tokenizer.chat_template
    return Fingerprints(
        data=file_fingerprint(config.data or samples.movie_reviews_file()),
        eval_data=eval_data,
        model_files=model.files,
        weights=model.weights,
        chat_template=digest_of(template) if template else NONE,
        tokens=tokens,
    )


def model_name(config: SweepConfig) -> str:
    """Return the base model's directory, file or hub id."""
    return config.model if config.model is not None else str(samples.minilm_directory())


def max_length(config: SweepConfig, task: Task) -> int:
    """Return how many tokens are kept of an example."""
    return config.max_length or task.objective.max_length


def _task_record(task: Task, base: "BaseModel | None") -> TaskRecord:
    objective = task.objective
    return TaskRecord(
        name=task.name,
        examples=objective.describe(),
        task_type=objective.task_type,
        loss=objective.unit,
        chance=objective.chance,
        chance_loss=task.chance_loss,
        score=objective.score,
        data_layout=None if task.layout is None else task.layout.as_dict(),
        chat_template=base is not None and bool(base.tokenizer.chat_template),
        answers_marked=base is not None and marks_assistant_tokens(base.tokenizer),
        label_names=list(objective.settings.get("id2label", {}).values()),
        train_examples=len(task.train),
        held_out_examples=len(task.held_out),
        test_examples=len(task.test),
    )
