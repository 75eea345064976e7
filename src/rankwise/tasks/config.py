"""Settings of the training and held-out data."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rankwise.checks import check_whole
from rankwise.errors import RequestError
from rankwise.settings import FilePath, Flag, Option, Settings, Text, checked, column

TaskName = Literal["auto", "classification", "regression", "sft"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Settings of the training and held-out data: files, columns, task, lengths."""

    data: Annotated[
        FilePath | None,
        Option(
            "Training data: a file (CSV, TSV, JSON, JSON lines, Parquet, Arrow; also compressed), "
            "a directory of them or one that datasets saved, or a data set of the hub as "
            "OWNER/NAME. A split is named after a colon, as in DIRECTORY:SPLIT or "
            "OWNER/NAME:CONFIG:SPLIT.",
            unset="the Rotten Tomatoes sample",
        ),
    ] = None
    eval_data: Annotated[
        FilePath | None,
        Option(
            "Held-out data, in the same formats.", unset="a stratified part of the training data"
        ),
    ] = None
    allow_duplicates: Annotated[
        Flag, Option("Allow held-out texts that are also in the training data.")
    ] = False
    task: Annotated[
        TaskName,
        Option(
            "Task: classification, regression (labels are numbers) or sft (instructions or plain "
            "texts for a causal language model); auto decides by the columns."
        ),
    ] = "auto"
    text_column: Annotated[Text | None, column("texts")] = None
    text_pair_column: Annotated[Text | None, column("second text of each pair")] = None
    label_column: Annotated[Text | None, column("labels")] = None
    messages_column: Annotated[Text | None, column("lists of messages (sft)")] = None
    prompt_column: Annotated[Text | None, column("prompts (sft)")] = None
    completion_column: Annotated[Text | None, column("completions (sft)")] = None
    max_length: Annotated[
        Annotated[int, checked(check_whole, at_least=4)] | None,
        Option("Truncate texts to this length.", metavar="TOKENS", unset="256; for sft 1024"),
    ] = None
    train_examples: Annotated[
        Annotated[int, checked(check_whole, at_least=2)] | None,
        Option("Use only this many training examples.", unset="all; 1000 of the sample"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = [name for name in vars(self) if name.endswith("_column")]
        alone = [name for name in ("eval_data", *columns) if getattr(self, name) is not None]
        if self.data is None and alone:
            raise RequestError(f"{alone[0]} goes with data, which is missing")
        if self.allow_duplicates and self.eval_data is None:
            raise RequestError("allow_duplicates goes with eval_data, which is missing")
