"""From a request to its task."""

import pandas as pd

from rankwise.config import SweepConfig
from rankwise.errors import RequestError
from rankwise.tasks.base import Task
from rankwise.tasks.classification import load_classification, load_sample
from rankwise.tasks.columns import LABEL_NAMES
from rankwise.tasks.dialogue import find_shape
from rankwise.tasks.readers import find_column, read_table
from rankwise.tasks.regression import is_numeric_label, load_regression
from rankwise.tasks.sft import load_sft

LOADERS = {"classification": load_classification, "regression": load_regression, "sft": load_sft}


def load_task(config: SweepConfig) -> Task:
    """Read, check and split the data that a config names, or the built-in sample.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    if config.data is None:
        if config.task not in ("auto", "classification"):
            raise RequestError(f"task {config.task!r} goes with data, which is missing; the sample is classification")
        return load_sample(config)
    table = read_table(config.data)
    return LOADERS[_kind(config, table)](config, table, config.data)


def _kind(config: SweepConfig, table: pd.DataFrame) -> str:
    """Tell the task by the columns, unless the config does: labels that are no whole numbers are a regression's."""
    if config.task != "auto":
        return config.task
    if config.messages_column or config.prompt_column or config.completion_column:
        return "sft"
    label = config.label_column or find_column(table, LABEL_NAMES)
    if label is None and find_shape(config, table) is not None:
        return "sft"
    return "regression" if label in table.columns and is_numeric_label(table[label]) else "classification"
