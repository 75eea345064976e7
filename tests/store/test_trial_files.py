"""A trial's files: held to their digests, their directory's name and their sweep's request."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from rankwise.engine.trial import Trial
from rankwise.errors import ExhaustedError, RankwiseError, RequestError
from rankwise.store.directory import SweepStore
from rankwise.store.records import (
    read_evidence,
    read_sweep,
    read_trials,
)
from rankwise.store.trial_files import read_trial_config, reading_file
from tests.factories import (
    REQUEST,
    finished,
    flipped_bit,
    read_all,
    request,
    save_sweep,
    seal_trial,
)

NAME = "r4-lr0.001-seed0"
OURS = request(epochs=1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    save_sweep(tmp_path / "out", [finished(4), finished(8)], OURS)
    return tmp_path / "out"


@pytest.mark.parametrize(
    "file",
    [
        "config.json", "metrics.jsonl", "evidence.parquet", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "SHA256SUMS",
    ],
)  # fmt: skip
def test_a_flipped_bit_is_refused_with_the_command_that_redoes_the_trial(
    out: Path, file: str
) -> None:
    """`benchmarks/torture/flips.py` does the same with thousands of flips in every kind of file."""
    before, path = read_all(out), out / "trials" / NAME / file
    written = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(written)), 12):
        path.write_bytes(flipped_bit(written, place))
        with pytest.raises(RankwiseError) as refused:
            read_all(out)
        assert f"trial {NAME} cannot be used: " in str(refused.value)
        assert str(refused.value).endswith(f"rm -r {out / 'trials' / NAME}")
    path.write_bytes(written)
    assert read_all(out) == before


def test_a_trial_under_another_name_is_refused(out: Path) -> None:
    for name in ("r16-lr0.001-seed0", "r4-lr0.002-seed0", "r4-lr0.001-seed1"):
        (out / "trials" / NAME).rename(out / "trials" / name)
        with pytest.raises(RankwiseError, match=f"{name} cannot be used: .*of the trial {NAME}"):
            read_evidence(out)
        (out / "trials" / name).rename(out / "trials" / NAME)


@pytest.mark.parametrize(
    "other",
    [
        request(epochs=3),
        replace(OURS, fingerprints=replace(OURS.fingerprints, chat_template="other")),
    ],
)
def test_a_trial_of_another_request_is_refused(out: Path, tmp_path: Path, other: object) -> None:
    assert isinstance(other, type(OURS))
    save_sweep(tmp_path / "other", [finished(16)], other)
    name = "r16-lr0.001-seed0"
    shutil.copytree(tmp_path / "other" / "trials" / name, out / "trials" / name)
    for read in (read_trials, read_evidence):
        with pytest.raises(RankwiseError, match=f"{name} .*trained for another request"):
            read(out)  # type: ignore[operator]


def test_sweeps_that_differ_in_search_or_decision_alone_share_trials() -> None:
    for changes in ({"ranks": [2]}, {"seeds": 9}, {"learning_rate": [1e-3]}, {"margin": 1.0}):
        assert request(**changes).digest == REQUEST.digest
    assert request(epochs=2).digest != REQUEST.digest
    assert request(epochs=2).digest == request(epochs=2.0).digest


def test_trials_without_a_record_of_their_request_go_on_for_this_request_alone(out: Path) -> None:
    (out / "sweep.json").unlink()
    with pytest.raises(RequestError, match=f"no sweep.json, and its trial {NAME} is not of this"):
        SweepStore(out, request(epochs=3))
    assert not (out / "sweep.json").exists()
    with SweepStore(out, OURS) as store:
        assert len(store.trials()) == 2
    assert read_sweep(out) == OURS
    (out / "sweep.json").unlink()
    for trial in (out / "trials").iterdir():
        make_earlier(trial)
    with pytest.raises(RequestError, match="is not of this request"):
        SweepStore(out, OURS)


def test_a_damaged_record_of_the_request_is_written_anew_from_the_trials(out: Path) -> None:
    path = out / "sweep.json"
    path.write_text(path.read_text().replace('"reviews.csv"', '"reviewz.csv"'))
    with pytest.raises(RequestError, match=r"sweep.json' cannot be read: it is damaged.*delete it"):
        SweepStore(out, OURS)
    path.unlink()
    with SweepStore(out, OURS) as store:
        assert len(store.evidence()) == 4


def make_earlier(trial: Path) -> None:
    """Turn a trial into one of an earlier version, which kept no digests."""
    (trial / "SHA256SUMS").unlink()
    config = json.loads((trial / "config.json").read_text())
    del config["request"]
    (trial / "config.json").write_text(json.dumps(config))


def earlier(out: Path) -> Path:
    """Turn a sweep directory into one of an earlier version."""
    content = json.loads((out / "sweep.json").read_text())
    del content["sha256"]
    (out / "sweep.json").write_text(json.dumps(content))
    for trial in (out / "trials").iterdir():
        make_earlier(trial)
    return out


def test_a_directory_of_an_earlier_version_is_read_and_taken_over_once(out: Path) -> None:
    before = read_all(out)
    assert read_all(earlier(out)) == before  # by a command that only reads
    with SweepStore(out, OURS) as store:
        (note,) = store.notes
        assert "2 trials are of an earlier version, which kept no digests" in note
    assert read_all(out) == before
    with SweepStore(out, OURS) as store:
        assert store.notes == []
    for trial in (out / "trials").iterdir():
        assert (trial / "SHA256SUMS").exists()


def test_a_take_over_that_was_killed_is_finished(out: Path) -> None:
    before = read_all(out)
    earlier(out)
    (done, half) = sorted((out / "trials").iterdir())
    # As after a kill: one trial has both, the other has no SHA256SUMS yet.
    for trial in (done, half):
        config = json.loads((trial / "config.json").read_text())
        config["request"] = OURS.digest
        (trial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    seal_trial(done)
    with SweepStore(out, OURS) as store:
        assert len(store.trials()) == 2
    assert read_all(out) == before


def test_a_rate_that_an_earlier_version_rounded_in_the_name_is_taken_over(tmp_path: Path) -> None:
    trial = Trial(rank=4, seed=0, learning_rate=0.001234567, lora_alpha=4)
    save_sweep(tmp_path / "out", [finished(4, trial=trial)], OURS)
    out, rounded = earlier(tmp_path / "out"), "r4-lr0.00123457-seed0"
    (out / "trials" / trial.name).rename(out / "trials" / rounded)
    assert [one.name for one in read_trials(out)] == [rounded]
    with SweepStore(out, OURS) as store:
        assert store.trial_names() == [trial.name]
        assert store.trials()[0].learning_rate == 0.001234567
    (out / "trials" / trial.name).rename(out / "trials" / rounded)  # which has digests by now
    with pytest.raises(RankwiseError, match=f"it is of the trial {trial.name}"):
        read_trials(out)


def change_epochs(trial: Path) -> None:
    config = json.loads((trial / "config.json").read_text())
    (trial / "config.json").write_text(json.dumps({**config, "epochs": 3}))


def swap_evidence(trial: Path) -> None:
    path = trial / "evidence.parquet"
    pd.read_parquet(path).assign(rank=8).to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_epochs, "epochs is 3, the sweep's is 1"),
        (lambda trial: (trial / "config.json").write_text("{"), "config.json"),
        (lambda trial: (trial / "evidence.parquet").unlink(), "evidence.parquet"),
        (swap_evidence, "evidence.parquet: its rank is not the one in config.json"),
    ],
)
def test_an_earlier_trial_that_does_not_agree_is_not_taken_over(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    save_sweep(tmp_path / "out", [finished(4)], OURS)
    out = earlier(tmp_path / "out")
    change(out / "trials" / NAME)
    with pytest.raises(RankwiseError, match=f"{NAME} cannot be used: .*{words}"):
        SweepStore(out, OURS)
    with pytest.raises(RequestError, match="epochs is 2, was 1"):
        SweepStore(out, request(epochs=2))


def test_the_name_of_a_healed_trial_is_held_to_its_start(tmp_path: Path) -> None:
    cut = "r2-lr0.001-seed0"
    trial = Trial(
        rank=2, seed=0, learning_rate=1e-4, lora_alpha=2, starts_from=cut, share_of_steps=0.1
    )
    save_sweep(tmp_path, [finished(2, trial=trial)])
    directory = tmp_path / "trials" / f"r2-lr0.0001-seed0-steps0.1-from-{cut}"
    assert read_trial_config(directory, REQUEST.digest)["starts_from"] == cut
    directory.rename(directory.with_name("r2-lr0.0001-seed0"))
    with pytest.raises(RankwiseError, match="it is of the trial"):
        read_trials(tmp_path)


@pytest.mark.parametrize("error", [KeyError("rank"), RecursionError(), OSError(5, "I/O error")])
def test_whatever_a_library_raises_is_an_error_of_the_file(out: Path, error: Exception) -> None:
    with pytest.raises(RankwiseError, match=r"cannot be used: metrics\.jsonl: .*rm -r"):  # noqa: SIM117
        with reading_file(out / "trials" / NAME, "metrics.jsonl"):
            raise error
    with pytest.raises(ExhaustedError), reading_file(out / "trials" / NAME, "metrics.jsonl"):
        raise MemoryError


def test_evidence_without_a_digest_is_checked_before_it_is_used(out: Path) -> None:
    """The bytes are no text in UTF-8, which pyarrow takes for one."""
    earlier(out)
    path = out / "trials" / NAME / "evidence.parquet"
    rows = pd.read_parquet(path)
    length, content = np.arange(len(rows) + 1, dtype=np.int32), np.full(len(rows), 255, np.uint8)
    buffers = [None, pa.py_buffer(length), pa.py_buffer(content)]
    words = pa.Array.from_buffers(pa.string(), len(rows), buffers)
    parquet.write_table(pa.Table.from_pandas(rows).append_column("words", words), path)
    with pytest.raises(RankwiseError, match=r"evidence\.parquet: .*UTF8"):
        read_evidence(out)
