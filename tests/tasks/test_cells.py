"""Lists in cells: as objects, as JSON text, and as Python and NumPy spell them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise.tasks.cells import is_empty, parse_cell, plain

VALUE = [
    {"role": "user", "content": 'it\'s "so"\nthen'},
    {"role": "assistant", "content": "}\n {", "tool_calls": [{"name": "f", "arguments": {}}]},
]


def test_a_list_that_pandas_wrote_to_csv_is_read_back(tmp_path: Path) -> None:
    """Of lists pandas writes Python's spelling, of arrays (which Parquet gives) NumPy's."""
    for value in (VALUE, np.array([{"role": "user", "content": "}\n {"}, {"role": "b'"}], object)):
        pd.DataFrame({"messages": [value]}).to_csv(tmp_path / "t.csv", index=False)
        cell = pd.read_csv(tmp_path / "t.csv")["messages"][0]
        assert isinstance(cell, str)
        assert parse_cell(cell) == list(value)


@pytest.mark.parametrize("cell", [VALUE, json.dumps(VALUE), str(VALUE), tuple(VALUE)])
def test_every_spelling_is_the_same_list(cell: Any) -> None:
    assert parse_cell(cell) == VALUE


@pytest.mark.parametrize("cell", ["hello", "[1, 2", "[x]", "(1)", None, 3, float("nan"), "3"])
def test_other_cells_hold_no_list(cell: Any) -> None:
    assert parse_cell(cell) is None


def test_nulls_that_arrow_adds_are_dropped(tmp_path: Path) -> None:
    tools = [[{"a": {"x": 1}}], [{"a": {"y": "n"}, "b": [1, 2]}]]
    pd.DataFrame({"t": tools}).to_parquet(tmp_path / "t.parquet")
    cells = pd.read_parquet(tmp_path / "t.parquet")["t"]
    assert cells[0][0] == {"a": {"x": 1.0, "y": None}, "b": None}
    assert [plain(cell) for cell in cells] == tools


def test_emptiness() -> None:
    empty = [None, float("nan"), "", " \n", [], {}, "[]", "null", pd.NA, np.array([])]
    assert all(is_empty(cell) for cell in empty[:-2])
    assert is_empty(np.array([]))
    assert not any(is_empty(cell) for cell in ("x", 0, False, [None], {"a": 1}, "None"))
