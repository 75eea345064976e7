"""Where data lie: a file, a part of it, a saved data set, or a directory with files of splits."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, reading, some
from rankwise.tasks.files import FORMATS, TEXT_ENDINGS, plain_name, read_file, refuse_other_kind
from rankwise.tasks.hf_datasets import (
    is_saved_dataset,
    name_classes,
    pick_split,
    quiet_datasets,
    read_saved_dataset,
    read_with_builder,
)

COLUMNAR = ("parquet", "arrow")  # formats whose files know the types of their columns
BUILDERS = ("csv", "json", "text", *COLUMNAR)
DATA_ENDINGS = tuple(ending for ending in FORMATS if ending not in TEXT_ENDINGS)
RECORDS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Files that datasets writes about the data."""


@dataclass(frozen=True)
class LocalSource:
    """A file or directory, and the part of it that the user named.

    Attributes:
        config: configuration of a directory; None for its default.
        split: split of a directory, or key of a JSON file; None for ``train``, or the only one.
    """

    path: Path
    config: str | None = None
    split: str | None = None


def find_local(path: Path) -> LocalSource | None:
    """Return the file or directory in ``PATH``, ``PATH:SPLIT`` or ``PATH:CONFIG:SPLIT``, if any."""
    if path.exists():
        return LocalSource(path)
    for count in (1, 2):
        head, *parts = str(path).rsplit(":", count)
        if len(parts) == count and all(parts) and Path(head).exists():
            return LocalSource(Path(head), parts[0] if count == 2 else None, parts[-1])
    return None


def read_local(source: LocalSource) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a file or directory, and notes on what was read and what was not.

    Raises:
        RequestError: there are no data, or it is not clear which of them are meant.
    """
    if not source.path.is_dir():
        if source.config is not None:
            raise RequestError(f"data {str(source.path)!r} is a file, and has no configurations")
        return read_file(source.path, source.split)
    if is_saved_dataset(source.path):
        return read_saved_dataset(source.path, source.split)
    return _read_directory(source)


def _read_directory(source: LocalSource) -> tuple[pd.DataFrame, list[str]]:
    """Read a split of a directory of data files, which datasets assigns to splits."""
    path, place = source.path, f"data {str(source.path)!r}"
    root = str(path.resolve())
    script = path / f"{Path(root).name}.py"
    if script.exists():
        raise RequestError(
            f"{place} has a data set's program, {script.name}, which is not run; "
            "to read the data files beside it, remove it or name a file"
        )
    if glob.has_magic(root):
        raise RequestError(f"{place}: datasets finds no files below a path with [, * or ?; rename")
    failure = f"{place} cannot be read (its files can be, one at a time)"
    with quiet_datasets() as (datasets, fresh), reading(failure):
        try:
            configs = datasets.get_dataset_config_names(root)
            config = source.config or datasets.get_dataset_default_config_name(root)
        except FileNotFoundError:
            raise RequestError(
                f"{place} is a directory without data files; allowed endings are "
                f"{', '.join(FORMATS)}"
            ) from None
        wanted = source.split
        if config is None and wanted in configs:
            config, wanted = wanted, None
        if config is None:
            raise RequestError(
                f"{place} has the configurations {some(configs, 12)}; "
                f"name one, as in '{path}:{configs[0]}'"
            )
        builder = datasets.load_dataset_builder(root, config, cache_dir=fresh["cache_dir"])
    if builder.name not in BUILDERS:
        raise RequestError(f"{place} holds data for {builder.name}; allowed are {some(BUILDERS)}")
    files = {str(name): list(map(Path, found)) for name, found in builder.config.data_files.items()}
    split, unread_splits = pick_split(list(files), wanted, path)
    unread = _unread_files(Path(root), files) if len(configs) == 1 else []
    if unread and list(files) == ["train"] and not _says_what_to_read(Path(root), files["train"]):
        raise RequestError(
            f"{place} holds data files of several kinds, and nothing says which are meant: "
            f"{_names([*files['train'], *unread], root)}; name one file"
        )
    count = f"{len(files[split])} files" if len(files[split]) > 1 else "1 file"
    notes = [f"split {split!r} from {count}: {_names(files[split], root)}", *unread_splits]
    if unread:
        notes.append(f"not read: {_names(unread, root)}")
    return _read_files(builder, files[split]), notes


def _read_files(builder: Any, files: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of all files of a split; class indices become class names."""
    for file in files:
        refuse_other_kind(file)
    if builder.name in COLUMNAR:
        rows = read_with_builder(builder.name, files)
    else:
        key = getattr(builder.config, "field", None)
        rows = pd.concat([read_file(file, key)[0] for file in files], ignore_index=True)
    for name, feature in (builder.info.features or {}).items():
        if hasattr(feature, "int2str") and pd.api.types.is_numeric_dtype(rows.get(name)):
            rows[name] = name_classes(rows[name], feature)
    return rows


def _unread_files(root: Path, files: dict[str, list[Path]]) -> list[Path]:
    """Return the data files of a directory that belong to no split."""
    used = {file for found in files.values() for file in found}
    others = []
    for file in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        is_data = plain_name(file).suffix.lower() in DATA_ENDINGS and file.name not in RECORDS
        if is_data and not hidden and file not in used and file.is_file():
            others.append(file)
    return others


def _says_what_to_read(root: Path, files: Sequence[Path]) -> bool:
    """Whether the names of the files, or the directory's README.md, say what training data are."""
    card = root / "README.md"
    if card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return True
    return all("train" in str(file.relative_to(root)).lower() for file in files)


def _names(files: Sequence[Path], root: str) -> str:
    return some(str(file.relative_to(root)) for file in files)
