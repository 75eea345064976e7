"""The files in a trial's directory, each held to its digest when it is read.

Trials of earlier versions carry no digests. They are read as they are, and a sweep takes them over
once, see `rankwise.store.directory.SweepStore`.
"""

import io
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.engine.trial import Trial
from rankwise.errors import RankwiseError, RequestError, reading
from rankwise.formatting import exact
from rankwise.store.digests import (
    SUMS,
    check_file,
    json_bytes,
    read_checked,
    read_sums,
    sums_bytes,
)
from rankwise.store.durable import rename, write_whole

REQUEST = "request"  # entry of a trial's config.json: the digest of the request it was trained for
SOURCE = "source_sha256"  # entry of config.json: digest of the adapter that a trial was made from
ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER = (ADAPTER_CONFIG, "adapter/adapter_model.safetensors")

# The following functions raise RankwiseError if a file is missing, damaged or of another request.


def read_trial_config(trial: Path, request: str | None = None) -> dict[str, Any]:
    """Read a trial directory's ``config.json``, and hold it to the directory's name.

    Args:
        trial: the directory.
        request: digest that the trial must carry; None for any.
    """
    with reading_file(trial, "config.json"):
        config = json_object(read_file(trial, "config.json"))
        _check_name(config, trial)
        if request is not None and config.get(REQUEST) != request:
            raise ValueError("it was trained for another request: other data, model or settings")
    return config


def read_steps(trial: Path) -> list[dict[str, Any]]:
    """Read the measurements of each optimizer step, all lines of ``metrics.jsonl`` but the last."""
    with reading_file(trial, "metrics.jsonl"):
        lines = read_file(trial, "metrics.jsonl").decode().splitlines()
        rows = [json_object(line) for line in lines]
    return rows[:-1]


def read_summary(trial: Path) -> dict[str, Any]:
    """Read the measurements of a whole trial, the last line of its ``metrics.jsonl``."""
    with reading_file(trial, "metrics.jsonl"):
        content = read_file(trial, "metrics.jsonl")
        summary = json_object(content.rstrip(b"\n").rpartition(b"\n")[2])
        if "trainable_params" not in summary:
            raise ValueError("the last line is missing")
    return summary


def read_trial_evidence(trial: Path, request: str | None = None) -> pd.DataFrame:
    """Read the held-out results in the directory of one complete trial, a row per example.

    Args:
        trial: the directory.
        request: digest that the trial must carry; None for any.
    """
    read_trial_config(trial, request)
    with reading_file(trial, "evidence.parquet"):
        content = read_file(trial, "evidence.parquet")
        if not (trial / SUMS).exists():
            _refuse_damaged(content)
        return pd.read_parquet(io.BytesIO(content))


def _refuse_damaged(content: bytes) -> None:
    """Refuse a Parquet file whose columns contradict themselves, which pyarrow would trust."""
    from pyarrow import parquet

    parquet.read_table(io.BytesIO(content)).validate(full=True)


def check_adapter(trial: Path, copy: Path | None = None) -> Path:
    """Hold the files of a trial's adapter, or of a copy of it, to their digests.

    Returns:
        The directory of the trial's adapter, in PEFT's format.
    """
    directory = trial / "adapter"
    if not directory.is_dir():
        raise unreadable(trial, "it has no directory adapter/")
    for name in ADAPTER:
        file = (copy or directory) / Path(name).name
        with reading_file(trial, name):
            check_file(file, name, _sums(trial))
    return directory


def adapter_digest(trial: Path) -> str | None:
    """Return the SHA-256 of a trial's adapter as it was written; None if there is none."""
    with reading_file(trial, SUMS):
        return (read_sums(trial) or {}).get(ADAPTER[1])


def source_of(trial: Path) -> str | None:
    """Return the trial that a trial was cut or healed from; None if that keeps no digest of it."""
    with suppress(RankwiseError):  # whoever uses a damaged trial names it
        config = read_trial_config(trial)
        name = config.get("truncated_from") or config.get("starts_from")
        if SOURCE in config and isinstance(name, str):
            return name
    return None


def is_outdated(trial: Path, source: Path) -> bool:
    """Return whether a trial was made from another adapter than its source has now.

    A source that is damaged or missing will be trained again, perhaps to the same adapter.
    """
    with suppress(RankwiseError):
        if source.is_dir() and read_trial_config(trial)[SOURCE] != (now := adapter_digest(source)):
            return check_adapter(source).is_dir() if now else not (source / "adapter").exists()
    return False


def read_file(trial: Path, name: str) -> bytes:
    """Read a file of a trial by its path in the directory, and hold it to its digest."""
    return read_checked(trial / name, name, _sums(trial))


def take_over(trial: Path, request: str, settings: Mapping[str, Any]) -> None:
    """Give a trial of an earlier version its request's digest, and the digests of its files.

    Killed midway, the next call does the rest.

    Args:
        trial: the directory.
        request: digest of the request.
        settings: the sweep's, to which those in the trial's ``config.json`` are held.
    """
    if (trial / SUMS).exists():
        return
    with reading_file(trial, "config.json"):
        config = json_object((trial / "config.json").read_bytes())
        name_now = _check_name(config, trial)
        for name in ("epochs", "batch_size"):
            if name in config and config[name] != settings.get(name):
                raise ValueError(f"{name} is {config[name]}, the sweep's is {settings.get(name)}")
        contents = {"config.json": json_bytes({**config, REQUEST: request})}
    files = ["metrics.jsonl", "evidence.parquet", *ADAPTER]
    for name in files:
        if (trial / name).exists():
            with reading_file(trial, name):
                contents[name] = (trial / name).read_bytes()
    with reading_file(trial, "evidence.parquet"):
        evidence = contents.get("evidence.parquet", b"")
        _refuse_damaged(evidence)
        rows = pd.read_parquet(io.BytesIO(evidence))
        for name in ("rank", "seed", "learning_rate"):
            if set(rows.get(name, ())) != {config[name]}:
                raise ValueError(f"its {name} is not the one in config.json")
    write_whole(trial / "config.json", contents["config.json"])
    with reading_file(trial, "config.json"):
        rename(trial, trial.with_name(name_now))
    write_whole(trial.with_name(name_now) / SUMS, sums_bytes(contents))


def _sums(trial: Path) -> dict[str, str] | None:
    """Return the digests of a trial's files; None for a trial of an earlier version."""
    sums = read_sums(trial)
    if sums is None and REQUEST in json_object((trial / "config.json").read_bytes()):
        raise ValueError(f"its {SUMS} is missing")
    return sums


def _check_name(config: Mapping[str, Any], trial: Path) -> str:
    """Refuse a ``config.json`` of a trial of another name than its directory; return the name.

    Earlier versions, without digests, rounded the learning rate in names to six digits.
    """
    names = ("rank", "seed", "learning_rate", "lora_alpha", "starts_from", "share_of_steps")
    values = {name: config[name] for name in names if name in config}
    try:
        name = Trial(**values).name
    except TypeError:
        raise ValueError("it lacks rank, seed, learning_rate or lora_alpha") from None
    rate = values["learning_rate"]
    rounded = name.replace(f"-lr{exact(rate)}-", f"-lr{rate:g}-", 1)
    if trial.name != name and (trial.name != rounded or (trial / SUMS).exists()):
        raise ValueError(f"it is of the trial {name}")
    return name


def unreadable(trial: Path, reason: object) -> RankwiseError:
    """Return the error about a trial that cannot be used, with the command that redoes it."""
    return RankwiseError(
        f"trial {trial.name} cannot be used: {' '.join(str(reason).split()).rstrip('.')}; to redo "
        f"it, run the sweep's command again after: rm -r {shlex.quote(str(trial))}"
    )


@contextmanager
def reading_file(trial: Path, file: str) -> Iterator[None]:
    """Report errors in the block as errors of a trial's file."""
    try:
        with reading(file):
            yield
    except RequestError as error:
        raise unreadable(trial, error) from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the object in a JSON text.

    Raises:
        ValueError: the text is not JSON, or holds no object.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content
