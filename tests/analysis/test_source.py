"""Helpers that read logs, and the settings that make runs comparable."""

import math
from pathlib import Path

import pytest

from rankwise.analysis.source import (
    comparable_settings,
    is_scalar,
    last_step,
    last_values,
    read_json_lines,
    read_json_object,
    train_loss_history,
)
from rankwise.errors import RequestError

ROWS = [
    {"step": 1, "train_loss": 3.0, "eval_loss": 2.0},
    {"step": 2, "train_loss": 2.5},
    {"step": 2, "train_loss": 2.0, "eval_loss": True, "note": "resumed"},
]


def test_the_last_number_under_each_name_counts() -> None:
    assert last_values(ROWS) == {"step": 2.0, "train_loss": 2.0, "eval_loss": 2.0}
    assert last_step(ROWS, {"eval_loss": "loss"}) == 1
    assert last_step(ROWS, {"bleu": "bleu"}) is None


def test_a_step_logged_twice_counts_once() -> None:
    history = train_loss_history(ROWS, ("loss", "train_loss"), {"rank": 4})
    assert history is not None
    assert history.to_dict("list") == {"rank": [4, 4], "step": [1, 2], "train_loss": [3.0, 2.0]}
    assert train_loss_history(ROWS, ("loss",), {"rank": 4}) is None


def test_rows_without_a_step_are_counted() -> None:
    rows = [{"loss": 3.0, "step": math.nan}, {"loss": 2.0}]
    history = train_loss_history(rows, ("loss",), {})
    assert history is not None and history["step"].tolist() == [1, 2]


def test_settings_are_equal_whatever_the_order_of_a_set() -> None:
    first = comparable_settings({"target_modules": ["q", "v"], "rank_pattern": {}, "r": 8})
    second = comparable_settings({"target_modules": ["v", "q"], "lora_dropout": None})
    assert first == second == {"target_modules": '["q", "v"]'}


def test_ranks_may_be_numbers_or_text() -> None:
    assert [is_scalar(value) for value in (8, "8", 1e-3, None, True, [8])] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_json_files_that_are_not_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"r": NaN}')
    assert math.isnan(read_json_object(path)["r"])
    path.write_text("[1]")
    with pytest.raises(RequestError, match=r"a\.json' holds a JSON list; allowed is an object"):
        read_json_object(path)
    path.write_text('{"step": 1}\n\n[1]\n')
    with pytest.raises(RequestError, match=r"a\.json' line 3 holds a JSON list"):
        list(read_json_lines(path))
