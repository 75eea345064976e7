"""Checkpoints: written whole, read where they were written, removed when they are of no use."""

import errno
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.trial import SavedTrial
from rankwise.errors import RankwiseError
from rankwise.store.checkpoints import CheckpointDirectory
from rankwise.store.records import Environment
from tests.factories import flipped_bit

HERE = Environment(
    versions={"torch": "2.13.0"}, platform="Linux", cpu_count=2, threads=2, device="cpu"
)

PLAIN = {"attention": "auto", "micro_batch_tokens": None}


def saved(
    name: str, started: int, seed: int = 0, made_with: Mapping[str, Any] = PLAIN
) -> SavedTrial:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "0": torch.randn(7, generator=generator),
        "1": torch.randint(256, (3, 2), generator=generator, dtype=torch.uint8),
        "2": torch.tensor(float(started), dtype=torch.float64),
    }
    steps = [{"step": 1, "train_loss": 0.1 + 0.2, "grad_norm": float("nan")}]
    return SavedTrial(
        name, tensors, {"started": started, "steps": steps, "seconds": 1 / 3}, made_with
    )


def assert_same(one: SavedTrial | None, other: SavedTrial) -> None:
    assert one is not None
    assert one.name == other.name
    assert repr(one.progress) == repr(other.progress)  # to the last bit, and NaN
    assert one.tensors.keys() == other.tensors.keys()
    for key, value in one.tensors.items():
        assert value.dtype == other.tensors[key].dtype
        assert torch.equal(value, other.tensors[key])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / ".unfinished"


def test_another_process_reads_what_was_written(directory: Path) -> None:
    first, second = saved("r4-lr0.001-seed0", 20), saved("r8-lr0.001-seed0", 20, seed=1)
    CheckpointDirectory(directory, HERE).write([first, second])
    later = CheckpointDirectory(directory, HERE)
    assert_same(later.read(first.name, PLAIN), first)
    assert_same(later.read(second.name, PLAIN), second)
    assert later.read("r2-lr0.001-seed0", PLAIN) is None


def test_the_latest_step_of_a_trial_counts(directory: Path) -> None:
    checkpoints = CheckpointDirectory(directory, HERE)
    checkpoints.write([saved("a", 10), saved("b", 10)])
    checkpoints.write([saved("b", 30)])
    assert_same(checkpoints.read("b", PLAIN), saved("b", 30))
    assert_same(checkpoints.read("a", PLAIN), saved("a", 10))
    checkpoints.write([saved("a", 40), saved("b", 40)])
    assert [path.name for path in directory.iterdir()] == ["a.safetensors"]
    assert_same(checkpoints.read("b", PLAIN), saved("b", 40))


def test_a_trial_made_with_other_settings_is_left_aside(directory: Path) -> None:
    other = {**PLAIN, "attention": "blocks"}
    checkpoints = CheckpointDirectory(directory, HERE)
    checkpoints.write([saved("a", 30), saved("b", 30)])
    assert checkpoints.read("b", other) is None
    checkpoints.write([saved("b", 10, made_with=other)])
    assert_same(checkpoints.read("b", other), saved("b", 10))  # not the later step of the other
    assert_same(checkpoints.read("b", PLAIN), saved("b", 30))


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, device="NVIDIA H100"),
        replace(HERE, threads=4),
        replace(HERE, versions={"torch": "2.14.0"}),
    ],
)
def test_another_kind_of_machine_ignores_and_removes(
    directory: Path, elsewhere: Environment
) -> None:
    CheckpointDirectory(directory, HERE).write([saved("a", 10)])
    assert CheckpointDirectory(directory, elsewhere).read("a", PLAIN) is None
    assert not list(directory.iterdir())


def test_a_broken_file_is_ignored_and_removed(directory: Path) -> None:
    checkpoints = CheckpointDirectory(directory, HERE)
    checkpoints.write([saved("a", 10)])
    (path,) = directory.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    assert checkpoints.read("a", PLAIN) is None
    assert not list(directory.iterdir())


def test_no_flipped_bit_gets_into_a_trial(directory: Path) -> None:
    """It goes on from the older file, or begins anew."""
    checkpoints = CheckpointDirectory(directory, HERE)
    checkpoints.write([saved("a", 10), saved("b", 10)])
    checkpoints.write([saved("b", 30)])
    older, newer = directory / "a.safetensors", directory / "b.safetensors"
    contents = {path: path.read_bytes() for path in (older, newer)}
    kept = set()
    for place in random.Random(0).sample(range(8 * len(contents[newer])), 150):
        for path, content in contents.items():
            path.write_bytes(content)
        newer.write_bytes(flipped_bit(contents[newer], place))
        found = checkpoints.read("b", PLAIN)
        assert found is not None
        assert_same(found, saved("b", int(found.progress["started"])))
        kept.add(found.progress["started"])
    assert 10 in kept and kept <= {10, 30}
    older.unlink()
    newer.write_bytes(contents[newer][:-8] + bytes(8))
    assert checkpoints.read("b", PLAIN) is None


def test_a_file_that_a_killed_process_was_writing_is_removed(directory: Path) -> None:
    CheckpointDirectory(directory, HERE).write([saved("a", 10)])
    (directory / ".partial-b.safetensors").write_bytes(b"half")
    again = CheckpointDirectory(directory, HERE)
    assert [path.name for path in directory.iterdir()] == ["a.safetensors"]
    assert_same(again.read("a", PLAIN), saved("a", 10))


def test_files_go_with_the_last_of_their_trials(directory: Path) -> None:
    checkpoints = CheckpointDirectory(directory, HERE)
    checkpoints.write([saved("a", 10), saved("b", 10)])
    checkpoints.write([saved("c", 10)])
    checkpoints.forget(["a", "c"])
    assert [path.name for path in directory.iterdir()] == ["a.safetensors"]
    checkpoints.forget(["a", "b", "c"])
    assert not directory.exists()
    checkpoints.write([saved("a", 10)])
    checkpoints.clear()
    assert not directory.exists()


def test_what_cannot_be_written_is_one_line_and_leaves_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RankwiseError, match=r"cannot write .*a\.safetensors"):
        CheckpointDirectory(tmp_path / "file", HERE).write([saved("a", 10)])


def test_a_checkpoint_that_cannot_be_opened_now_is_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = saved("r4-lr0.001-seed0", 20)
    CheckpointDirectory(directory, HERE).write([trial])

    def safe_open(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
        patched.setattr("safetensors.safe_open", safe_open)
        CheckpointDirectory(directory, HERE).read(trial.name, PLAIN)
    assert_same(CheckpointDirectory(directory, HERE).read(trial.name, PLAIN), trial)
