"""Data sets of Hugging Face's datasets, as ``save_to_disk`` leaves them."""

from pathlib import Path

import pandas as pd

from rankwise.errors import RequestError, some


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory is what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` writes."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved_dataset(path: Path) -> pd.DataFrame:
    """Read one split; numbers that stand for named classes become their names.

    Args:
        path: a directory for which `is_saved_dataset` holds.

    Raises:
        RequestError: datasets is not installed, the directory holds several splits, or it cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise RequestError(
            f"data {str(path)!r} is a saved data set, and the package datasets, which reads it, is missing: "
            "pip install 'rankwise[datasets]'"
        ) from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"data {str(path)!r} cannot be read as a data set: {' '.join(str(error).split())}") from None
    if isinstance(loaded, datasets.DatasetDict):
        splits = sorted(loaded)
        raise RequestError(
            f"data {str(path)!r} holds the splits {some(splits)}; give one, as in {str(path / splits[0])!r}"
        )
    table: pd.DataFrame = loaded.to_pandas()
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.ClassLabel):  # -1 and None stand for an unknown class
            table[name] = [
                feature.int2str(int(value)) if pd.notna(value) and value >= 0 else None for value in table[name]
            ]
    return table
