"""Which directories a request may use, and which sweeps it goes on with."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RequestError
from rankwise.models.fingerprint import earlier_digest
from rankwise.store.directory import SweepStore
from rankwise.store.records import SweepRecord, read_finished_sweep, read_sweep
from tests.factories import REQUEST, finished, request, save_sweep

OTHER_DATA = replace(REQUEST.fingerprints, data="c")


def begin(directory: Path, record: SweepRecord) -> None:
    """Leave a sweep with one complete trial."""
    save_sweep(directory, [finished()], record)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (request(ranks=[4, 16]), r"ranks is \[4, 16\], was \[4, 8\]"),
        (request(seeds=1), "seeds is 1, was 2; give the same request, or another out$"),
        (request(seeds=3), "seeds is 3, was 2.*--extend"),
        (request(new=1), "new is 1, was None"),
        (
            replace(REQUEST, fingerprints=OTHER_DATA),
            "another request: its data changed; give the same request",
        ),
    ],
)
def test_another_request_is_refused_with_the_difference_named(
    tmp_path: Path, request_: Any, words: str
) -> None:
    begin(tmp_path, REQUEST)
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(RequestError, match=words):
        SweepStore(tmp_path, request_)
    assert (tmp_path / "sweep.json").read_bytes() == before
    with SweepStore(tmp_path, REQUEST):  # the refusal let go of the lock
        pass


def test_another_margin_is_answered_with_the_analyze_command(tmp_path: Path) -> None:
    out = tmp_path / "my sweep"
    begin(out, REQUEST)
    for settings, options in (
        ({"margin": 0.1}, "--margin 0.1 --confidence 0.95"),
        ({"confidence": 0.9}, "--margin 0.02 --confidence 0.9"),
        ({"margin": 0.1, "confidence": 0.9}, "--margin 0.1 --confidence 0.9"),
    ):
        with pytest.raises(RequestError) as refused:
            SweepStore(out, request(**settings))
        assert str(refused.value).endswith(f"without training: rankwise analyze '{out}' {options}")
    # Trials of another request are no evidence for this one.
    for other in (
        request(margin=0.1, ranks=[4, 16]),
        replace(request(margin=0.1), fingerprints=OTHER_DATA),
    ):
        with pytest.raises(RequestError, match="another request") as refused:
            SweepStore(out, other)
        assert "analyze" not in str(refused.value)


def test_extending_accepts_more_seeds_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path, REQUEST)
    for other in (request(seeds=1), request(seeds=4, ranks=[4, 16])):
        with pytest.raises(RequestError, match="another request"):
            SweepStore(tmp_path, other, extend=True)
    with SweepStore(tmp_path, request(seeds=4), extend=True):
        assert read_sweep(tmp_path) == request(seeds=4)


def test_paths_that_cannot_be_a_sweep_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="is a file"):
        SweepStore(tmp_path / "file", REQUEST)
    with pytest.raises(RequestError, match="cannot be written: Not a directory"):
        SweepStore(tmp_path / "file" / "out", REQUEST)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match=r"holds other files \(thesis.tex\)"):
        SweepStore(tmp_path / "other", REQUEST)
    with pytest.raises(RequestError, match="cannot be written"):
        SweepStore(Path("/proc/rankwise-out"), REQUEST)


def test_a_sweep_that_lost_its_record_goes_on_with_all_that_it_has(tmp_path: Path) -> None:
    begin(tmp_path, REQUEST)
    kept = [
        "decision.json", "reported.json", "mlflow.db", "wandb/run", "nohup.out",
        "diagnosis/r4-lr0.001-seed0-steps2/config.json", ".unfinished/r8-lr0.001-seed0.safetensors",
    ]  # fmt: skip
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "sweep.json").unlink()
    with SweepStore(tmp_path, REQUEST):
        assert read_sweep(tmp_path) == REQUEST
    assert [name for name in kept if not (tmp_path / name).exists()] == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(3 << 20))
    return tmp_path / "model"


def begin_earlier(out: Path, model: Path) -> SweepRecord:
    """Leave a sweep of an earlier version; return the request that goes on with it."""
    record = replace(request(epochs=1), paths=replace(REQUEST.paths, model=str(model)))
    begin(out, record)
    content = asdict(record)
    content["fingerprints"] = {"model": earlier_digest(str(model)), "data": "b", "eval_data": None}
    (out / "sweep.json").write_text(json.dumps(content))
    return record


def test_an_earlier_sweep_goes_on_with_its_own_model_alone(tmp_path: Path, model: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    record = begin_earlier(out, model)
    shutil.copytree(model, other)
    moved = replace(record, paths=replace(record.paths, model=str(other)))
    with pytest.raises(RequestError, match=f"model is {other}, was {model}; give the same"):
        SweepStore(out, moved)
    weights = model / "model.safetensors"
    weights.write_bytes(bytes((3 << 20) - 1) + b"1")
    with pytest.raises(RequestError, match="another request: its model changed"):
        SweepStore(out, record)
    weights.write_bytes(bytes(3 << 20))
    with SweepStore(out, record) as store:
        assert store.request == request(epochs=1).digest


def test_what_an_earlier_version_derived_can_be_read_while_its_sweep_goes_on(
    tmp_path: Path, model: Path
) -> None:
    record = begin_earlier(tmp_path / "out", model)
    for trial in (tmp_path / "out" / "trials").iterdir():
        (trial / "SHA256SUMS").unlink()
    (tmp_path / "out" / "decision.json").write_text('{"rank": 4}')
    with SweepStore(tmp_path / "out", record) as store:
        assert read_finished_sweep(store.directory) == (record, {"rank": 4})
        (note,) = store.notes
        assert "search for learning rates has changed since, so further trials may be" in note


def test_an_earlier_sweep_without_a_finished_trial_begins_as_one_of_today(
    tmp_path: Path, model: Path
) -> None:
    record = begin_earlier(tmp_path / "out", model)
    for trial in (tmp_path / "out" / "trials").iterdir():
        shutil.rmtree(trial)
    with SweepStore(tmp_path / "out", record) as store:
        store.add(finished(), {"epochs": 1})
        assert read_sweep(store.directory) == record
        assert len(store.evidence()) == 2
