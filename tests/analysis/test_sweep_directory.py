"""A rankwise sweep, read from its directory; `tests/analysis/test_read.py` reads its evidence."""

from pathlib import Path

import pytest

from rankwise.analysis.sweep_directory import read_sweep
from rankwise.errors import RequestError
from rankwise.store.directory import SweepStore
from tests import factories


def test_the_score_has_the_name_of_the_tasks_metric(tmp_path: Path) -> None:
    factories.save_sweep(tmp_path, [factories.finished(4)], factories.request(ranks=[4]))
    source = read_sweep(tmp_path)
    assert source.metrics == {"loss": "loss", "score": "accuracy"}
    assert [trial.rank for trial in source.trials] == [4]
    with pytest.raises(RequestError, match="has no complete trial yet"):
        read_sweep(tmp_path / "absent")


def test_the_trials_of_a_diagnosis_are_named_and_left_out(tmp_path: Path) -> None:
    request, further = factories.request(ranks=[4]), factories.finished(8)
    factories.save_sweep(tmp_path, [factories.finished(4)], request)
    assert read_sweep(tmp_path).notes == ()
    with SweepStore(tmp_path, request) as store:
        store.add(further, {}, "diagnosis")
    source = read_sweep(tmp_path)
    assert [trial.rank for trial in source.trials] == [4]
    assert set(source.rows["rank"]) == {4}
    (note,) = source.notes
    assert note.startswith(f"{further.trial.name} in diagnosis/ is left out")
