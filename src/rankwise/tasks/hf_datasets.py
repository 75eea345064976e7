"""Data sets of the datasets library: directories that ``save_to_disk`` wrote, and hub ids."""

from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some


def is_saved_dataset(path: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote a directory."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved_dataset(path: Path) -> pd.DataFrame:
    """Read a saved split; class indices become class names.

    Args:
        path: a directory for which `is_saved_dataset` holds.

    Raises:
        RequestError: datasets is not installed, the directory holds several splits, or it is
            malformed.
    """
    datasets = _import_datasets(f"data {str(path)!r} is a saved data set")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"data {str(path)!r} cannot be read as a data set: {' '.join(str(error).split())}"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        splits = sorted(loaded)
        raise RequestError(
            f"data {str(path)!r} holds the splits {some(splits)}; "
            f"give one, as in {str(path / splits[0])!r}"
        )
    return _as_table(loaded)


def split_hub_id(path: Path) -> tuple[str, str | None, str]:
    """Return name, configuration and split of a data set; the split is ``train`` by default."""
    name, *rest = path.as_posix().split(":")
    return name, rest[0] if len(rest) > 1 else None, rest[-1] if rest else "train"


def read_hub_dataset(path: Path) -> pd.DataFrame:
    """Read one split of a data set from a hub, or from its local cache.

    Args:
        path: a hub id, see `rankwise.tasks.readers.is_hub_id`.

    Raises:
        RequestError: datasets is not installed, or there is no such data set, configuration or
            split in reach.
    """
    datasets = _import_datasets(f"data {str(path)!r} is no file, and may be a hub's data set")
    name, config, split = split_hub_id(path)
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"data {str(path)!r}: no such file, and no data set of a hub in reach: {reason}"
        ) from None
    return _as_table(loaded)


def _import_datasets(found: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise RequestError(
            f"{found}, and the package datasets, which reads it, is missing: "
            "pip install 'rankwise[datasets]'"
        ) from None
    return datasets


def _as_table(loaded: Any) -> pd.DataFrame:
    from datasets import ClassLabel

    table: pd.DataFrame = loaded.to_pandas()
    for name, feature in loaded.features.items():
        if isinstance(feature, ClassLabel):  # -1 and None mean an unknown class
            table[name] = [
                feature.int2str(int(value)) if pd.notna(value) and value >= 0 else None
                for value in table[name]
            ]
    return table
