"""Columns of evidence with their types, whoever made them: `rankwise.select` and the importers check them here."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from rankwise.checks import LARGEST

Refuse = Callable[[pd.Series, np.ndarray, str], None]
"""Called with a column, which of its rows are good, (rows,), and what is allowed; raises where one is not."""


def typed(evidence: pd.DataFrame, measured: Iterable[str], refuse: Refuse) -> pd.DataFrame:
    """Return evidence whose columns have their types: rank, seed, learning rate, divergence, measures, examples.

    Args:
        evidence: with those columns, and perhaps ``example_id``; values as they were given.
        measured: columns of what was measured; not looked at in rows that diverged.
        refuse: what to do about values that are none.
    """
    evidence = evidence.copy()
    evidence["diverged"] = truth(evidence["diverged"], refuse)
    for name, allowed, least in (
        ("rank", "whole numbers of at least 1", 1.0),
        ("seed", "whole numbers", -LARGEST),
    ):
        numbers = as_numbers(evidence[name])
        whole = (least <= numbers) & (numbers <= LARGEST) & (np.floor(numbers) == numbers)
        refuse(evidence[name], whole, allowed)
        evidence[name] = numbers.astype(np.int64)
    rates = as_numbers(evidence["learning_rate"])
    refuse(evidence["learning_rate"], np.isfinite(rates) & (rates >= 0), "numbers above 0")
    evidence["learning_rate"] = rates
    for name in measured:
        values = as_measures(evidence[name])
        refuse(
            evidence[name], np.isfinite(values) | evidence["diverged"].to_numpy(),
            "finite numbers; a trial whose loss is not finite is marked by a column diverged",
        )  # fmt: skip
        evidence[name] = values
    if "example_id" in evidence.columns:
        evidence["example_id"] = _example_ids(evidence, refuse)
    return evidence


def as_numbers(values: pd.Series) -> np.ndarray:
    """Return numbers, (rows,), NaN for what is none; true and false are none."""
    if pd.api.types.is_bool_dtype(values):
        return np.full(len(values), np.nan)
    if (
        values.dtype == object
    ):  # mixed: text is read as a number where it is one, lists and true are not
        values = values.map(lambda value: value if _may_be_number(value) else None)
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold; true and false are not."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300
    )


def _may_be_number(value: object) -> bool:
    return isinstance(value, (str, np.integer, np.floating)) or is_number(value)


def as_measures(column: pd.Series) -> np.ndarray:
    """Return a column of metrics as numbers, (rows,); of an example answered right, true is 1."""
    if pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return as_numbers(column)


def truth(values: pd.Series, refuse: Refuse) -> pd.Series:
    """Return a column of true and false, however it was written."""
    meanings = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if values.dtype == bool:
        return values
    known = values.map(lambda value: meanings.get(str(value).strip().lower()))
    refuse(values, known.notna().to_numpy(), "true and false")
    return known.astype(bool)


def _example_ids(evidence: pd.DataFrame, refuse: Refuse) -> pd.Series:
    """Return ids as whole numbers if all are, else as text; a diverged trial may have none (-1)."""
    ids = evidence["example_id"]
    refuse(ids, (ids.notna() | evidence["diverged"]).to_numpy(), "an id for each example")
    ids = ids.where(ids.notna(), -1)
    if pd.api.types.is_float_dtype(ids) and ((ids % 1 == 0) & (ids.abs() <= LARGEST)).all():
        return ids.astype(np.int64)
    return ids if pd.api.types.is_signed_integer_dtype(ids) else ids.astype(str)
