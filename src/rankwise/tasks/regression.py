"""Regression: texts, or pairs of texts, with numbers as labels."""

import numpy as np
import pandas as pd

from rankwise.errors import RequestError
from rankwise.tasks.base import Examples, Task
from rankwise.tasks.classification import encode
from rankwise.tasks.config import DataConfig
from rankwise.tasks.labels import keep_labelled
from rankwise.tasks.losses import RegressionObjective
from rankwise.tasks.readers import Table, find_text_columns
from rankwise.tasks.splits import limit_train, make_splits, number_examples

LARGEST_SCALE = 10.0  # labels with a larger mean or spread are slow to learn at usual rates


def load_regression(config: DataConfig, table: Table) -> Task:
    """Check and split a table of texts and numbers."""
    columns = find_text_columns(config, table)

    left_out: list[str] = []

    def read(table: Table) -> Examples:
        labelled, notes = keep_labelled(table, columns.label, numbers=True)
        left_out.extend(notes)
        inputs, labels = columns.inputs(labelled), labelled.numbers(columns.label)
        return number_examples(inputs, labels, labelled)

    splits = make_splits(config, read(table), read)
    labels = splits.train.labels
    variance = float(np.var(labels))
    if not variance > 0 or not np.isfinite(variance):
        raise RequestError(
            f"column {columns.label!r} of {str(table.path)!r} has one number only ({labels[0]:g}); "
            "there is nothing to learn"
        )
    note = (
        f"{columns.describe(table.path)}; the loss is the squared error as a share of the labels' "
        f"variance, {variance:.4g}"
    )
    notes = (note, *left_out, *splits.notes, *_scale_notes(float(np.mean(labels)), variance**0.5))
    kept = limit_train(splits, config.train_examples)
    return kept.task(table.path.name, RegressionObjective(variance), encode, notes=notes)


def is_numeric_label(values: pd.Series) -> bool:
    """Whether labels are numbers with fractions, which cannot be names of classes."""
    return pd.api.types.is_float_dtype(values) and bool((values.dropna() % 1 != 0).any())


def _scale_notes(mean: float, deviation: float) -> tuple[str, ...]:
    """Return a note on labels whose scale makes training harder."""
    if deviation >= 1 / LARGEST_SCALE and max(deviation, abs(mean)) <= LARGEST_SCALE:
        return ()
    return (
        f"labels have a mean of {mean:.4g} and a standard deviation of {deviation:.4g}: "
        "training is easier with labels around 0 that spread by about 1",
    )
