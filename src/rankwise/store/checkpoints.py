"""Checkpoints of trials in training, from which a killed sweep goes on."""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rankwise.engine.trial import SavedTrial
from rankwise.errors import RankwiseError
from rankwise.store.records import Environment


class CheckpointDirectory:
    """A directory of trials in training, a file for those that share passes.

    A file is written under a temporary name and renamed, so it holds all its trials at the same
    step. It is read only with the settings and versions and on the kind of machine that wrote it:
    otherwise sums round differently, and the trial would be neither the one nor the other.

    Args:
        directory: made when the first file is written, removed with the last; used by one process
            at a time.
        environment: versions and hardware of this process.
    """

    def __init__(self, directory: Path, environment: Environment) -> None:
        self.directory = directory
        self._environment = json.loads(json.dumps(asdict(environment)))
        for unfinished in directory.glob(".*"):  # of a process that was killed while it wrote
            unfinished.unlink()

    def write(self, saved: Sequence[SavedTrial]) -> None:
        """Keep trials that share passes, in place of what was kept of them before.

        Raises:
            RankwiseError: the file cannot be written; what was kept before stays.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        trials = {each.name: dict(each.progress) for each in saved}
        tensors = {
            f"{each.name}/{key}": value for each in saved for key, value in each.tensors.items()
        }
        made_with = dict(saved[0].made_with)
        content = {"environment": self._environment, "made_with": made_with, "trials": trials}
        path = self.directory / f"{saved[0].name}.safetensors"
        partial = path.with_name(f".partial-{path.name}")
        try:
            self.directory.mkdir(exist_ok=True)
            save_file(tensors, partial, {"rankwise": json.dumps(content)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            reason = getattr(error, "strerror", None) or error
            raise RankwiseError(f"cannot write {str(path)!r}: {reason}") from None
        self._remove_covered(path, set(trials))

    def read(self, name: str, made_with: Mapping[str, Any]) -> SavedTrial | None:
        """Return the trial of a name at its last step kept; None if it was not kept here.

        A file made with other settings is left where it is, and is not read.
        """
        found = [
            (content["trials"][name]["started"], path, content["trials"][name])
            for path, content in self._files().items()
            if name in content["trials"] and content.get("made_with") == made_with
        ]
        if not found:
            return None
        from safetensors import safe_open

        _, path, progress = max(found, key=lambda each: each[0])
        prefix = f"{name}/"
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            own = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
            tensors = {short: file.get_tensor(key) for short, key in own.items()}
        return SavedTrial(name, tensors, progress, made_with)

    def forget(self, complete: Collection[str]) -> None:
        """Remove the files whose trials are all complete."""
        for path, content in self._files().items():
            if set(content["trials"]) <= set(complete):
                path.unlink(missing_ok=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def clear(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_covered(self, newest: Path, trials: set[str]) -> None:
        """Remove older files whose trials are all in the newest one."""
        for path, content in self._files().items():
            if path != newest and set(content["trials"]) <= trials:
                path.unlink(missing_ok=True)

    def _files(self) -> dict[Path, Mapping[str, Any]]:
        """Return the contents of the usable files, without tensors; remove the others."""
        contents = {}
        for path in sorted(self.directory.glob("[!.]*")):
            content = _content(path)
            if content is not None and content["environment"] == self._environment:
                contents[path] = content
            else:
                path.unlink(missing_ok=True)
        return contents


def _content(path: Path) -> Mapping[str, Any] | None:
    """Return what a file says of its trials; None if it is no checkpoint or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = json.loads(file.metadata()["rankwise"])
            return content
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
