"""Regression: texts, or pairs of texts, and numbers to parts."""

from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.errors import RequestError, some
from rankwise.tasks.base import Task
from rankwise.tasks.classification import encode
from rankwise.tasks.config import DataConfig
from rankwise.tasks.losses import RegressionObjective
from rankwise.tasks.readers import find_text_columns, read_table
from rankwise.tasks.splits import given_parts, limit_train, number_examples, split_parts

FAR = 10.0  # times the unit that labels' mean or spread may be before rates of training have to make up for it


def load_regression(config: DataConfig, table: pd.DataFrame, path: Path) -> Task:
    """Check and split a table of texts and numbers.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    columns = find_text_columns(config, table, path)
    examples = number_examples(
        columns.read_inputs(table, path), check_numbers(table[columns.label], path)
    )
    if config.eval_data is None:
        parts = split_parts(examples, [""] * len(examples))
    else:
        other = read_table(config.eval_data)
        columns.check(other, config.eval_data)
        held_out = number_examples(
            columns.read_inputs(other, config.eval_data),
            check_numbers(other[columns.label], config.eval_data),
        )
        parts = given_parts(examples, held_out, config.eval_data, config.allow_duplicates)
    train, held_out, test, notes = parts
    variance, middle = float(np.var(train.labels)), abs(float(np.mean(train.labels)))
    if not variance > 0 or not np.isfinite(variance):
        raise RequestError(
            f"column {columns.label!r} of {str(path)!r} has one number only ({train.labels[0]:g}); "
            "there is nothing to be learnt"
        )
    notes = (
        f"{columns.note(path)}; the loss is the squared error as a share of the labels' variance, {variance:.4g}",
        *notes,
    )
    if max(variance**0.5, middle) > FAR or variance**0.5 < 1 / FAR:
        notes += (
            f"labels have a mean of {np.mean(train.labels):.4g} and a standard deviation of {variance**0.5:.4g}: "
            "training is easier with labels around 0 that spread by about 1",
        )
    task = Task(path.name, RegressionObjective(variance), encode, train, held_out, test, notes)
    return limit_train(task, config.train_examples, [""] * len(train))


def check_numbers(values: pd.Series, path: Path) -> list[float]:
    """Return the labels as numbers.

    Raises:
        RequestError: one is no finite number; the rows are named.
    """
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)  # (N,)
    bad = [row + 1 for row in np.flatnonzero(~np.isfinite(numbers)).tolist()]
    if bad:
        raise RequestError(
            f"column {values.name!r} of {str(path)!r}: not a number in {len(bad)} of {len(values)} rows "
            f"(row {some(bad)}); allowed are finite numbers"
        )
    return numbers.tolist()


def is_numeric_label(values: pd.Series) -> bool:
    """Whether labels are numbers of which some are not whole, so that they name no classes."""
    if not pd.api.types.is_float_dtype(values):
        return False
    known = values.dropna()
    return bool((known % 1 != 0).any())
