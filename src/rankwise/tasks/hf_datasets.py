"""Data sets of the datasets library: its builders, saved directories, and hub ids."""

import glob
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, nearest, reading, some

INDEX_COLUMN = "__index_level_"  # names that pandas gives to an index in Parquet


def is_saved_dataset(path: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote a directory."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved_dataset(path: Path, split: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a saved split, and notes; class indices become class names."""
    splits = path / "dataset_dict.json"
    if not splits.is_file():
        if split is not None:
            raise RequestError(f"data {str(path)!r} is one split, and has no split {split!r}")
        return _read_split(path), []
    chosen, notes = pick_split(json.loads(splits.read_text())["splits"], split, path)
    return _read_split(path / chosen), [f"split {chosen!r}", *notes]


def _read_split(directory: Path) -> pd.DataFrame:
    """Read a saved split; files that are no part of it, such as caches of maps, do not count."""
    for part in json.loads((directory / "state.json").read_text())["_data_files"]:
        refuse_damaged(directory / part["filename"])
    with quiet_datasets() as (datasets, _):
        return as_table(datasets.load_from_disk(str(directory)))


def split_hub_id(path: Path) -> tuple[str, str | None, str]:
    """Return name, configuration and split of a data set; the split is ``train`` by default."""
    name, *rest = path.as_posix().split(":")
    return name, rest[0] if len(rest) > 1 else None, rest[-1] if rest else "train"


def read_hub_dataset(path: Path) -> pd.DataFrame:
    """Read one split of a data set from a hub, or from its local cache."""
    import datasets

    name, config, split = split_hub_id(path)
    with reading(f"data {str(path)!r}: no such file, and no data set of a hub in reach"):
        return as_table(datasets.load_dataset(name, config, split=split))


def read_with_builder(builder: str, files: Sequence[Path]) -> pd.DataFrame:
    """Read files with a builder of datasets, such as ``parquet``."""
    for file in files:
        refuse_damaged(file)
    patterns = [glob.escape(str(file.resolve())) for file in files]
    with quiet_datasets() as (datasets, fresh):
        return as_table(datasets.load_dataset(builder, data_files=patterns, split="train", **fresh))


def refuse_damaged(file: Path) -> None:
    """Refuse an Arrow or Parquet file whose columns contradict themselves.

    pyarrow trusts what it reads unless it is asked to check it, and a wrong offset ends the process
    later on. It reads one batch after the other, so that a large file takes no memory here.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    with reading(f"data {str(file)!r} cannot be read"), pyarrow.memory_map(str(file)) as source:
        head = source.read(6)
        source.seek(0)
        if head.startswith(b"PAR1"):
            batches = parquet.ParquetFile(source).iter_batches()
        elif head == b"ARROW1":
            whole = ipc.open_file(source)
            batches = map(whole.get_batch, range(whole.num_record_batches))
        else:
            batches = ipc.open_stream(source)
        for batch in batches:
            batch.validate(full=True)


def pick_split(names: Sequence[str], wanted: str | None, path: Path) -> tuple[str, list[str]]:
    """Return the split to read, ``train`` by default, and a note on those that are not."""
    if wanted is not None and wanted not in names:
        hint = nearest(wanted, names)
        raise RequestError(
            f"data {str(path)!r} has no split {wanted!r}{hint}; splits: {some(names)}"
        )
    if wanted is None and "train" not in names and len(names) > 1:
        raise RequestError(
            f"data {str(path)!r} holds the splits {some(names)}; "
            f"give one, as in '{path}:{names[0]}'"
        )
    chosen = wanted or ("train" if "train" in names else names[0])
    others = [name for name in names if name != chosen]
    if not others or wanted is not None:
        return chosen, []
    how = f"name one after a colon, as in eval_data '{path}:{others[0]}'"
    return chosen, [f"other splits are not part of these data: {some(others)} ({how})"]


@contextmanager
def quiet_datasets() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield datasets without its progress bars and logs, and options for a cache of its own.

    The cache is removed afterwards, so that a changed file is never read from it.
    """
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    libraries = (datasets.logging, hub_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = datasets.are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="rankwise-") as cache:
            options = {"cache_dir": cache, "keep_in_memory": True, "verification_mode": "no_checks"}
            yield datasets, options
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def as_table(loaded: Any) -> pd.DataFrame:
    """Return a data set as plain Python values; class indices become class names."""
    from datasets import ClassLabel

    columns: dict[str, Any] = {}
    table = loaded.with_format("arrow")[:]
    for name, feature in loaded.features.items():
        if name.startswith(INDEX_COLUMN):
            continue
        values = table[name].to_pylist()
        if "Json(" in repr(feature):  # kept as JSON text inside Arrow
            values = loaded.select_columns([name])[:][name]
        columns[name] = name_classes(values, feature) if isinstance(feature, ClassLabel) else values
    return pd.DataFrame(columns)


def name_classes(values: Iterable[Any], feature: Any) -> list[str | None]:
    """Return the class names of a ClassLabel's indices; -1 and None mean no label."""
    return [
        feature.int2str(int(value)) if pd.notna(value) and value >= 0 else None for value in values
    ]
