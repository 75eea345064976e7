"""Entry point of the tasks package: from the data settings to a task with tokenisable splits."""

from dataclasses import replace

from rankwise.errors import RequestError, reading, some
from rankwise.tasks.base import Task
from rankwise.tasks.cells import is_empty
from rankwise.tasks.chat_formats import DataLayout, find_layout
from rankwise.tasks.classification import load_classification, load_sample
from rankwise.tasks.config import DataConfig, TaskName
from rankwise.tasks.messages import holds_messages
from rankwise.tasks.preferences import refuse_preference_data
from rankwise.tasks.readers import LABEL_NAMES, Table, find_text_columns, read_table
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
                f"task {config.task!r} needs data: the built-in sample is classification"
            )
        return load_sample(config)
    table = read_table(config.data)
    with reading(f"data {str(config.data)!r} cannot be used"):
        task = _load_table(config, table)
        unused = _unused_columns(config, table, task)
    return replace(task, notes=(*table.notes, *task.notes, *unused))


def _load_table(config: DataConfig, table: Table) -> Task:
    refuse_preference_data(config, table)
    layout = find_layout(config, table) if config.task in ("auto", "sft") else None
    task = _infer_task(config, table, layout) if config.task == "auto" else config.task
    _refuse_unused_columns(config, task)
    if task == "sft":
        return load_sft(config, table, layout)
    if task == "regression":
        return load_regression(config, table)
    return load_classification(config, table)


def _infer_task(config: DataConfig, table: Table, layout: DataLayout | None) -> TaskName:
    """Return the task that the columns imply.

    Messages and instructions imply supervised fine-tuning, even if the table has labels too, such
    as a category or a rating. Labels that are fractions imply regression.
    """
    if config.messages_column or config.prompt_column or config.completion_column:
        return "sft"
    label = config.label_column or table.find_column(LABEL_NAMES)
    is_named = config.label_column or config.text_column or config.text_pair_column
    if layout and (label is None or (not is_named and _outranks_labels(layout, table))):
        return "sft"
    if label in table.columns and is_numeric_label(table.rows[label]):
        return "regression"
    return "classification"


def _outranks_labels(layout: DataLayout, table: Table) -> bool:
    """Whether a table with labels is instruction data all the same.

    Prompts and completions may be the texts that labels are about. A column called dialogue may
    hold plain texts, and one called conversation numbers.
    """
    if layout.data_format == "messages":
        return holds_messages(table.rows[layout.columns["messages"]].iloc[0])
    if layout.data_format == "chats":
        return True
    return layout.data_format == "alpaca"


def _refuse_unused_columns(config: DataConfig, task: str) -> None:
    used = "messages_column, or prompt_column and completion_column"
    for option in UNUSED_COLUMNS[task]:
        column = getattr(config, option)
        if column is not None:
            raise RequestError(
                f"{option} {column!r} is not read for task {task}; "
                f"name its inputs with {used if task == 'sft' else 'text_column'}"
            )


def _unused_columns(config: DataConfig, table: Table, task: Task) -> list[str]:
    """Return a note on the columns that are neither used nor empty, if there are any."""
    if task.layout is not None:
        used = set(task.layout.columns.values())
    else:
        columns = find_text_columns(config, table)
        used = {columns.text, columns.pair or columns.text, columns.label}
    counts = []
    for column in table.columns:
        if column in used:
            continue
        filled = sum(not is_empty(cell) for cell in table.rows[column])
        if filled:
            counts.append(f"{column} ({filled} of {len(table)} rows)")
    return [f"columns that are not used: {some(counts, 12)}"] if counts else []
