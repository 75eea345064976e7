"""Data sets of the datasets library: directories that ``save_to_disk`` wrote, and hub ids."""

from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, some


def is_saved_dataset(path: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote a directory."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved_dataset(path: Path) -> pd.DataFrame:
    """Read a saved split; class indices become class names."""
    place = f"data {str(path)!r}"
    datasets = _import_datasets(f"{place} is a saved data set")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{place} cannot be read as a data set: {reason}") from None
    if isinstance(loaded, datasets.DatasetDict):
        splits = sorted(loaded)
        example = str(path / splits[0])
        raise RequestError(f"{place} holds the splits {some(splits)}; give one, as in {example!r}")
    return _as_table(loaded)


def split_hub_id(path: Path) -> tuple[str, str | None, str]:
    """Return name, configuration and split of a data set; the split is ``train`` by default."""
    name, *rest = path.as_posix().split(":")
    return name, rest[0] if len(rest) > 1 else None, rest[-1] if rest else "train"


def read_hub_dataset(path: Path) -> pd.DataFrame:
    """Read one split of a data set from a hub, or from its local cache."""
    place = f"data {str(path)!r}"
    datasets = _import_datasets(f"{place} is no file, and may be a data set on a hub")
    name, config, split = split_hub_id(path)
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{place}: no such file, and no data set of a hub in reach: {reason}"
        ) from None
    return _as_table(loaded)


def _import_datasets(reason: str) -> Any:
    try:
        import datasets
    except ImportError:
        remedy = "install the package that reads it: pip install 'rankwise[datasets]'"
        raise RequestError(f"{reason}; {remedy}") from None
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
