"""Writing that outlives a power cut: contents and directories reach the disk before a rename."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rankwise.errors import RankwiseError

PARTIAL = ".partial-"  # begins the names of what is not whole yet


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader finds the old content or the new, never a part.

    Raises:
        RankwiseError: the file cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        write_synced(partial, content)
        rename(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def write_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a new directory, by their paths in it, and sync them and all directories."""
    for name, content in contents.items():
        write_synced(directory / name, content)
    for folder in {(directory / name).parent for name in contents} | {directory}:
        sync_directory(folder)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, and wait until the disk has its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory, and wait until the disk has the new name."""
    os.replace(source, target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Wait until the disk has a directory's entries.

    Windows opens no directories, and some network file systems refuse to sync them.
    """
    with suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sync_tree(path: Path) -> None:
    """Wait until the disk has all files and directories below a directory, and itself."""
    for folder, _, names in os.walk(path):
        for name in names:
            with (Path(folder) / name).open("rb") as file, suppress(OSError):
                os.fsync(file.fileno())
        sync_directory(Path(folder))


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, kept: str = "") -> RankwiseError:
    """Return the error about a file of a sweep that cannot be written."""
    return RankwiseError(
        f"cannot write {str(path)!r}: {error.strerror or error}; "
        f"{kept}complete trials are kept, and the same command resumes from them"
    )
