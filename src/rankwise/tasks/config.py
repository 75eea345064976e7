"""Settings of the training and held-out data."""

from dataclasses import dataclass, fields
from pathlib import Path

from rankwise.checks import check_flag, check_path, check_text, check_whole
from rankwise.errors import RequestError
from rankwise.settings import Settings, one_of, option, optional

TASKS = ("auto", "classification", "regression", "sft")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Settings of the data: files, columns, task, lengths."""

    task: str = option(
        "auto",
        "classification, regression (labels are numbers) or sft (instructions or plain texts to a causal language "
        "model); auto tells by the columns.",
        lambda value: one_of("task", TASKS, value),
    )
    data: Path | None = option(
        None,
        "Training data: CSV, TSV, JSON lines, Parquet, a directory that datasets saved, or a hub's data set as "
        "OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT. Default: the Rotten Tomatoes sample.",
        optional(lambda value: check_path("data", value)),
    )
    eval_data: Path | None = option(
        None,
        "Held-out data. Default: a stratified part of the training data.",
        optional(lambda value: check_path("eval_data", value)),
    )
    allow_duplicates: bool = option(
        False,
        "Let eval_data hold texts that the training data holds too.",
        lambda value: check_flag("allow_duplicates", value),
    )
    text_column: str | None = option(
        None,
        "Column with the texts. Default: found by its name.",
        optional(lambda value: check_text("text_column", value)),
    )
    text_pair_column: str | None = option(
        None,
        "Column with the second text of each pair. Default: found by its name, if at all.",
        optional(lambda value: check_text("text_pair_column", value)),
    )
    label_column: str | None = option(
        None,
        "Column with the labels. Default: found by its name.",
        optional(lambda value: check_text("label_column", value)),
    )
    messages_column: str | None = option(
        None,
        "sft: column with lists of messages. Default: found by its name.",
        optional(lambda value: check_text("messages_column", value)),
    )
    prompt_column: str | None = option(
        None,
        "sft: column with the prompts. Default: found by its name.",
        optional(lambda value: check_text("prompt_column", value)),
    )
    completion_column: str | None = option(
        None,
        "sft: column with the completions. Default: found by its name.",
        optional(lambda value: check_text("completion_column", value)),
    )
    max_length: int | None = option(
        None,
        "Tokens kept of each text. Default: 256; of sft 1024.",
        optional(lambda value: check_whole("max_length", value, at_least=4)),
    )
    train_examples: int | None = option(
        None,
        "Train on this many examples only. Default: all (1000 of the sample).",
        optional(lambda value: check_whole("train_examples", value, at_least=2)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = [item.name for item in fields(self) if item.name.endswith("_column")]
        alone = [name for name in ("eval_data", *columns) if getattr(self, name) is not None]
        if self.data is None and alone:
            raise RequestError(f"{alone[0]} goes with data, which is missing")
        if self.allow_duplicates and self.eval_data is None:
            raise RequestError("allow_duplicates goes with eval_data, which is missing")
