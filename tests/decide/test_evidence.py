"""Evidence as `select` reads it: types of columns, refusals, the rate that a rank is judged by."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select


def table(**columns: Any) -> pd.DataFrame:
    values = {"rank": [4, 4, 8, 8], "seed": [0, 1, 0, 1], "loss": [0.5, 0.6, 0.4, 0.45]}
    return pd.DataFrame({**values, **columns})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"seed": [0, np.nan, 0, 1]},
            r"seed nan in 1 of 4 rows \(row 1\); allowed are whole numbers",
        ),
        ({"seed": ["a", "b", "a", "b"]}, r"seed 'a', 'b' in 4 of 4 rows"),
        ({"seed": [0, 0.5, 0, 1]}, r"seed 0.5 in 1 of 4 rows \(row 1\)"),
        (
            {"loss": [0.5, "high", 0.4, 0.45]},
            r"loss 'high' in 1 of 4 rows \(row 1\); allowed are finite numbers",
        ),
        (
            {"learning_rate": [1e-3, np.nan, np.nan, 1e-3]},
            r"learning_rate nan in 2 of 4 rows \(row 1, 2\)",
        ),
        ({"learning_rate": -1.0}, r"learning_rate -1.0 in 4 of 4 rows"),
        (
            {"diverged": [False, None, False, False]},
            r"diverged None in 1 of 4 rows \(row 1\); allowed are true and fal",
        ),
        ({"diverged": "perhaps"}, r"diverged 'perhaps' in 4 of 4 rows"),
        ({"example_id": [3, None, 3, 3]}, r"example_id nan in 1 of 4 rows"),
        ({"rank": [4, 4, [8], 8]}, r"rank \[8\] in 1 of 4 rows"),
    ],
)
def test_values_that_no_column_holds(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        select(table(**columns))


@pytest.mark.parametrize(
    "columns",
    [
        {"diverged": "False"},
        {"diverged": 0},
        {"seed": ["0", "1", "0", "1"]},
        {"seed": pd.Series([0, 1, 0, 1], dtype=object).map(np.int64).astype(object)},
        {"loss": ["0.5", "0.6", "0.4", "0.45"]},
    ],
)
def test_values_that_are_written_otherwise(columns: dict[str, Any]) -> None:
    assert select(table(**columns)).as_dict() == select(table()).as_dict()


@pytest.mark.parametrize("way", ["metric", "higher_is_better"])
def test_arguments_of_another_type(way: str) -> None:
    with pytest.raises(RequestError, match=rf"{way} \['loss'\]: allowed is"):
        select(table(), **{way: ["loss"]})  # type: ignore[arg-type]
