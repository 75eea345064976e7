"""The conclusion of a sweep: decision, report, exports and adapters, replaced all at once.

All of it is derived from trials. Whatever is damaged or comes from another version is replaced by
the next end of the sweep, and nothing there can stop one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankwise.store.durable import PARTIAL, cannot_write, remove, rename, sync_directory, sync_tree
from rankwise.store.trial_files import check_adapter

RANK_PATTERN_DIRECTORY = "best-rank-pattern"
DECISION = "decision.json"
CONCLUSION = ("best", RANK_PATTERN_DIRECTORY, "export", "report.html", DECISION)


@contextmanager
def new_conclusion(directory: Path) -> Iterator[Path]:
    """Yield an empty directory; what lies there at the end becomes the sweep's conclusion.

    A reader finds the old conclusion, none, or the new one: ``decision.json`` is the first to go
    and the last to come. An error in the ``with`` block leaves the old one.

    Args:
        directory: the sweep directory.

    Raises:
        RankwiseError: a file cannot be written.
    """
    place, old = (directory / f"{PARTIAL}{name}" for name in ("conclusion", "old-conclusion"))
    try:
        for made in (place, old):
            remove(made)
            made.mkdir()
        yield place
        sync_tree(place)
        _move(directory, old, tuple(reversed(CONCLUSION)))
        _move(place, directory, CONCLUSION)
    except OSError as error:
        raise cannot_write(directory / DECISION, error) from None
    finally:
        for made in (place, old):
            shutil.rmtree(made, ignore_errors=True)


def _move(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Move what is there of a conclusion; the disk sees the moves in the order of the names."""
    for name in names:
        if (source / name).exists():
            rename(source / name, target / name)
            sync_directory(source)


def copy_adapter(trial: Path, target: Path) -> None:
    """Copy the adapter of a trial, and hold the copy to the trial's digests.

    Raises:
        RankwiseError: the trial has no adapter, or the adapter or the copy is damaged.
        OSError: the copy cannot be written.
    """
    shutil.copytree(check_adapter(trial), target)
    check_adapter(trial, target)
