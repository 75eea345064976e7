"""Entry point of the tasks package: from the data settings to a task with tokenisable splits."""

from rankwise.errors import RequestError
from rankwise.tasks.base import Task
from rankwise.tasks.chat_formats import ChatFormat, find_chat_format, holds_messages
from rankwise.tasks.classification import load_classification, load_sample
from rankwise.tasks.config import DataConfig, TaskName
from rankwise.tasks.readers import LABEL_NAMES, Table, read_table
from rankwise.tasks.regression import is_numeric_label, load_regression
from rankwise.tasks.sft import load_sft

CHAT_COLUMNS = ("messages_column", "prompt_column", "completion_column")
UNUSED_COLUMNS = {
    "classification": CHAT_COLUMNS,
    "regression": CHAT_COLUMNS,
    "sft": ("label_column", "text_pair_column"),
}
"""Options that name columns which a task does not read."""


def load_task(config: DataConfig) -> Task:
    """Read, check and split the data that the settings name, or the built-in sample.

    Raises:
        RequestError: the data cannot be used; the message says which and why.
    """
    if config.data is None:
        if config.task not in ("auto", "classification"):
            raise RequestError(
                f"task {config.task!r} goes with data, which is missing; "
                "the sample is classification"
            )
        return load_sample(config)
    table = read_table(config.data)
    chat_format = None
    if config.task in ("auto", "sft"):
        chat_format = find_chat_format(config, table)
    task = config.task
    if task == "auto":
        task = _infer_task(config, table, chat_format)
    _refuse_unused_columns(config, task)
    if task == "sft":
        return load_sft(config, table, chat_format)
    if task == "regression":
        return load_regression(config, table)
    return load_classification(config, table)


def _infer_task(config: DataConfig, table: Table, chat_format: ChatFormat | None) -> TaskName:
    """Return the task that the columns imply.

    Messages and instructions are supervised fine-tuning, even beside labels such as a category or
    a rating. Labels that are fractions are regression.
    """
    if config.messages_column or config.prompt_column or config.completion_column:
        return "sft"
    label = config.label_column or table.find_column(LABEL_NAMES)
    is_named = config.label_column or config.text_column or config.text_pair_column
    if chat_format is not None and label is None:
        return "sft"
    if chat_format is not None and not is_named and _outranks_labels(chat_format, table):
        return "sft"
    if label in table.columns and is_numeric_label(table.rows[label]):
        return "regression"
    return "classification"


def _outranks_labels(chat_format: ChatFormat, table: Table) -> bool:
    """Whether a table with labels is instruction data all the same.

    Prompts and completions may be the texts that labels are about. A column called dialogue may
    hold plain texts, and one called conversation numbers.
    """
    if chat_format.data_format == "messages":
        return holds_messages(table.rows[chat_format.columns["messages"]].iloc[0])
    return chat_format.data_format == "alpaca"


def _refuse_unused_columns(config: DataConfig, task: str) -> None:
    for option in UNUSED_COLUMNS[task]:
        column = getattr(config, option)
        if column is not None:
            used = "text_column"
            if task == "sft":
                used = "messages_column, or prompt_column and completion_column"
            raise RequestError(
                f"{option} {column!r} is not read for task {task}; "
                f"what it learns from is named by {used}"
            )
