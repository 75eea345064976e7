"""Rows of a table that are no results of LoRA: runs that did not finish, and baselines."""

from collections.abc import Iterable

import pandas as pd

from rankwise.analysis.names import columns_named
from rankwise.decide.metrics import snake
from rankwise.errors import some

STATE_NAMES = (
    "state", "status", "run_state", "run_status", "trial_state", "trial_status", "job_status",
)  # fmt: skip
# MLflow, W&B, Optuna, Ray Tune and Slurm, in lower case.
FINISHED = {
    "finished", "complete", "completed", "success", "succeeded", "successful", "terminated", "done",
    "ok",
}  # fmt: skip
UNFINISHED = {
    "failed", "fail", "failure", "running", "killed", "scheduled", "crashed", "preempting",
    "preempted", "pruned", "waiting", "pending", "error", "errored", "paused", "diverged",
    "cancelled", "canceled", "aborted", "timeout", "oom", "memory", "queued", "interrupted",
    "stopped", "nan", "incomplete", "unfinished", "deleted", "skipped", "restarting", "exploded",
    "starting", "submitted", "created", "offline",
}  # fmt: skip
# Words, in place of a rank or in a column of methods, for training without LoRA.
METHOD_NAMES = (
    "method", "finetuning_type", "train_type", "tuner_type", "peft_type", "peft_method",
    "adapter", "adapter_type", "training_type", "tuning", "approach",
)  # fmt: skip
FLAG_NAMES = ("use_lora", "use_peft", "lora", "peft", "is_lora")
BASELINES = {
    "", "none", "null", "nan", "na", "n_a", "full", "full_ft", "fullft", "fft", "sft_full", "ft",
    "full_fine_tuning", "full_finetuning", "full_finetune", "full_fine_tune", "full_parameter",
    "full_param", "full_params", "full_rank", "finetune", "fine_tuning", "finetuning", "base",
    "base_model", "baseline", "no_lora", "without_lora", "no_adapter", "zero_shot", "zeroshot",
    "pretrained", "untuned", "inf", "0", "0_0",
}  # fmt: skip

WITHOUT_LORA = {"fft", "none", "null", "no_lora", "without_lora", "no_adapter"}


def finished_rows(table: pd.DataFrame, origin: str) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the rows of runs that did not finish; a note counts them by their state.

    A column is one of states if it has a conventional name and one of the known words. A row with
    an unknown word stays, and a note says so.
    """
    for name in columns_named(table.columns, STATE_NAMES):
        cells = table[name].map(lambda cell: "" if pd.isna(cell) else snake(str(cell)))
        words = cells.map(lambda cell: set(cell.split("_")))
        unfinished = words.map(lambda each: bool(each & UNFINISHED)).astype(bool)
        finished = words.map(lambda each: bool(each & FINISHED)).astype(bool) & ~unfinished
        if not (finished | unfinished).any():
            continue
        notes = []
        if unfinished.any():
            states = table.loc[unfinished, name].astype(str)
            notes.append(f"{origin}: {_left_out(unfinished)}: {name} is {_counted(states)}")
        unknown = table.loc[~finished & ~unfinished, name]
        if len(unknown):
            notes.append(
                f"{origin}: {len(unknown)} rows are kept, though it is not known whether "
                f"{name} {_counted(unknown.astype(str))} means finished"
            )
        return table[~unfinished], notes
    return table, []


def baseline_rows(table: pd.DataFrame, ranks: pd.Series) -> pd.Series:
    """Return which rows are no LoRA training: no rank or 0, or a method or flag that says so."""
    found = ranks.map(is_baseline).astype(bool)
    for name in columns_named(table.columns, METHOD_NAMES):
        if name != ranks.name:
            cells = table[name].map(_is_without_lora)
            found |= cells.astype(bool)
    for name in columns_named(table.columns, FLAG_NAMES):
        off = table[name].map(lambda cell: str(cell).strip().lower() in ("false", "no"))
        found |= off.astype(bool)
    return found


def baseline_note(baselines: pd.Series, written: Iterable[object], origin: str) -> str:
    """Say how many rows are baselines, and which ranks they have."""
    texts = ("blank" if rank != rank or not str(rank).strip() else str(rank) for rank in written)
    ranks = some(dict.fromkeys(texts))
    return f"{origin}: {_left_out(baselines)}: trained without LoRA (rank: {ranks})"


def is_baseline(cell: object) -> bool:
    """Whether a cell in place of a rank says that there is none."""
    text = str(cell).strip()
    if text in ("", "-", "–", "—", "∞", "<NA>"):
        return True
    return not text.startswith("-") and snake(text) in BASELINES


def _is_without_lora(method: object) -> bool:
    """Whether a method's name says so; "baseline" beside a rank may be a kind of LoRA."""
    word = snake(method) if isinstance(method, str) else ""
    return word in WITHOUT_LORA or (word.startswith("full") and word in BASELINES)


def _left_out(rows: pd.Series) -> str:
    count = int(rows.sum())
    return f"{count} of {len(rows)} rows {'is' if count == 1 else 'are'} left out"


def _counted(states: pd.Series) -> str:
    return some(f"{state} ({count})" for state, count in states.value_counts().items())
