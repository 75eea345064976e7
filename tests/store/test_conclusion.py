"""The conclusion of a sweep: old, none or new for whoever reads it, and no damaged adapter in it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RankwiseError
from rankwise.store import conclusion
from rankwise.store.conclusion import CONCLUSION, DECISION, copy_adapter, new_conclusion
from rankwise.store.durable import remove
from tests.factories import finished, save_sweep

TRIAL = "r4-lr0.001-seed0"


def fill(place: Path, text: str) -> None:
    for name in CONCLUSION:
        if "." in name:
            (place / name).write_text(text)
        else:
            (place / name).mkdir()
            (place / name / "file").write_text(text)


def seen_by_a_reader(out: Path) -> set[str] | None:
    """Return what a reader finds, who looks at the decision first; None without a decision."""
    if not (out / DECISION).exists():
        return None
    files = [path for path in out.rglob("*") if path.is_file() and ".partial" not in str(path)]
    return {path.read_text() for path in files}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with new_conclusion(tmp_path) as place:
        fill(place, "old")
    assert seen_by_a_reader(tmp_path) == {"old"}
    assert {path.name for path in tmp_path.iterdir()} == set(CONCLUSION)
    return tmp_path


def test_a_reader_finds_the_old_conclusion_none_or_the_new_one(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after every call that changes what a reader finds."""
    found: list[set[str] | None] = []

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            found.append(seen_by_a_reader(out))
            result = change(*arguments)
            found.append(seen_by_a_reader(out))
            return result

        return wrapper

    monkeypatch.setattr(os, "replace", watched(os.replace))
    with new_conclusion(out) as place:
        fill(place, "new")
        assert seen_by_a_reader(out) == {"old"}
    found.append(seen_by_a_reader(out))
    kinds = [kind for place, kind in enumerate(found) if place == 0 or kind != found[place - 1]]
    assert kinds == [{"old"}, None, {"new"}]
    assert {path.name for path in out.iterdir()} == set(CONCLUSION)


@pytest.mark.parametrize("moves", range(2 * len(CONCLUSION)))
def test_killed_between_two_moves_it_leaves_the_old_one_none_or_the_new_one(
    out: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    done = 0
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    # A process that is killed removes nothing.
    monkeypatch.setattr(conclusion.shutil, "rmtree", lambda path, **options: None)
    with pytest.raises(KeyboardInterrupt), new_conclusion(out) as place:
        fill(place, "new")
    assert seen_by_a_reader(out) in ({"old"}, None, {"new"})
    monkeypatch.undo()
    with new_conclusion(out) as place:
        fill(place, "newer")
    assert seen_by_a_reader(out) == {"newer"}


def test_an_error_leaves_the_old_conclusion(out: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_conclusion(out) as place:
        fill(place, "new")
        raise ZeroDivisionError
    with pytest.raises(RankwiseError, match=r"cannot write .*decision.json"), new_conclusion(out):
        raise OSError(28, "No space left on device")
    assert seen_by_a_reader(out) == {"old"}
    assert {path.name for path in out.iterdir()} == set(CONCLUSION)


def test_what_is_not_in_the_new_conclusion_is_gone(out: Path) -> None:
    with new_conclusion(out) as place:
        (place / DECISION).write_text("undetermined")
    assert [path.name for path in out.iterdir()] == [DECISION]


@pytest.mark.parametrize("name", CONCLUSION)
def test_anything_in_the_place_of_a_part_is_replaced(out: Path, name: str) -> None:
    remove(out / name)
    if "." in name:
        (out / name / "below").mkdir(parents=True)
    else:
        (out / name).write_text("a file")
    with new_conclusion(out) as place:
        fill(place, "new")
    assert seen_by_a_reader(out) == {"new"}


def test_only_a_whole_adapter_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sweep(tmp_path / "out", [finished(4)])
    trial = tmp_path / "out" / "trials" / TRIAL
    copy_adapter(trial, tmp_path / "copy")
    weights = "adapter_model.safetensors"
    written = (trial / "adapter" / weights).read_bytes()
    assert (tmp_path / "copy" / weights).read_bytes() == written
    (trial / "adapter" / weights).write_bytes(written[:-1] + b"\0")
    with pytest.raises(RankwiseError, match=f"{TRIAL} cannot be used: .*{weights}.* rm -r "):
        copy_adapter(trial, tmp_path / "second")
    (trial / "adapter" / weights).write_bytes(written)

    def copy_badly(source: Path, target: Path) -> None:
        copytree(source, target)
        (target / weights).write_bytes(written[:-1] + b"\0")

    copytree = shutil.copytree
    monkeypatch.setattr(conclusion.shutil, "copytree", copy_badly)
    with pytest.raises(RankwiseError, match=f"{TRIAL} cannot be used"):
        copy_adapter(trial, tmp_path / "third")
    shutil.rmtree(trial / "adapter")
    with pytest.raises(RankwiseError, match=f"{TRIAL} cannot be used: it has no directory adapter"):
        copy_adapter(trial, tmp_path / "fourth")
