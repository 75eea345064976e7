"""From a request to its task."""

from pathlib import Path

import pandas as pd

from rankwise.errors import RequestError
from rankwise.tasks.base import Task
from rankwise.tasks.chat_formats import Shape, find_shape
from rankwise.tasks.classification import load_classification, load_sample
from rankwise.tasks.config import DataConfig
from rankwise.tasks.readers import LABEL_NAMES, find_column, read_table
from rankwise.tasks.regression import is_numeric_label, load_regression
from rankwise.tasks.sft import load_sft

ANSWERS = ("messages_column", "prompt_column", "completion_column")
FOREIGN = {
    "classification": ANSWERS,
    "regression": ANSWERS,
    "sft": ("label_column", "text_pair_column"),
}
"""Columns that a task does not read."""
LOADERS = {"classification": load_classification, "regression": load_regression, "sft": load_sft}


def load_task(config: DataConfig) -> Task:
    """Read, check and split the data that a config names, or the built-in sample.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    if config.data is None:
        if config.task not in ("auto", "classification"):
            raise RequestError(
                f"task {config.task!r} goes with data, which is missing; the sample is classification"
            )
        return load_sample(config)
    table = read_table(config.data)
    kind = _kind(config, table, config.data)
    for name in FOREIGN[kind]:
        if (column := getattr(config, name)) is not None:
            others = (
                "messages_column, or prompt_column and completion_column"
                if kind == "sft"
                else "text_column"
            )
            raise RequestError(
                f"{name} {column!r} is not read for task {kind}; what it learns from is named by {others}"
            )
    return LOADERS[kind](config, table, config.data)


def _kind(config: DataConfig, table: pd.DataFrame, path: Path) -> str:
    """Tell the task by the columns, unless the config does: labels that are no whole numbers are a regression's.

    Messages and instructions are there to be learnt whatever else a table holds, such as a category or a rating.
    """
    if config.task != "auto":
        return config.task
    if config.messages_column or config.prompt_column or config.completion_column:
        return "sft"
    label = config.label_column or find_column(table, LABEL_NAMES)
    named = config.label_column or config.text_column or config.text_pair_column
    shape = find_shape(config, table)
    if shape is not None and (
        label is None or (not named and _outranks_labels(shape, table, path))
    ):
        return "sft"
    return (
        "regression"
        if label in table.columns and is_numeric_label(table[label])
        else "classification"
    )


def _outranks_labels(shape: Shape, table: pd.DataFrame, path: Path) -> bool:
    """Whether a table is plainly one of dialogues: a question and an answer may be what a label is about."""
    if shape.data_format != "messages":
        return shape.data_format == "alpaca"
    try:
        shape.read(table.head(1), path)
    except (
        RequestError
    ):  # a column called dialogue may hold plain texts, one called conversation numbers
        return False
    return True
