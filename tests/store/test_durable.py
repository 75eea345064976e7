"""Writing: whole or not at all, and on the disk before it is renamed."""

import os
from pathlib import Path

import pytest

from rankwise.errors import RankwiseError
from rankwise.store import durable
from rankwise.store.durable import rename, sync_tree, write_files, write_whole


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed, in order, by name."""
    seen: list[tuple[str, str]] = []
    replace = os.replace

    def note_sync(number: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name))

    def note_rename(source: Path, target: Path) -> None:
        seen.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(durable.os, "fsync", note_sync)
    monkeypatch.setattr(durable.os, "replace", note_rename)
    return seen


def test_a_file_is_synced_before_its_rename_and_its_directory_after(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    write_whole(tmp_path / "file.json", b"new")
    assert (tmp_path / "file.json").read_bytes() == b"new"
    assert events == [("sync", ".partial-file.json"), ("rename", "file.json"), ("sync", tmp_path.name)]  # fmt: skip


def test_a_directory_is_synced_with_all_that_is_in_it(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    write_files(tmp_path / "new", {"a": b"1", "below/b": b"2"})
    assert events[:2] == [("sync", "a"), ("sync", "b")]
    assert sorted(events[2:]) == [("sync", "below"), ("sync", "new")]
    events.clear()
    sync_tree(tmp_path / "new")
    assert {name for _, name in events} == {"a", "b", "below", "new"}
    events.clear()
    rename(tmp_path / "new", tmp_path / "renamed")
    assert events == [("rename", "renamed"), ("sync", tmp_path.name)]


def test_what_cannot_be_written_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("old")
    with pytest.raises(RankwiseError, match=r"cannot write .*taken"):
        write_whole(tmp_path / "taken", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
