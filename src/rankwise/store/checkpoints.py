"""Checkpoints of trials in training, from which a killed sweep goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.engine.trial import SavedTrial
from rankwise.errors import RankwiseError, ran_out
from rankwise.store.durable import PARTIAL, rename
from rankwise.store.records import Environment

if TYPE_CHECKING:
    import torch


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
        content = {
            "environment": self._environment,
            "made_with": made_with,
            "trials": trials,
            "digests": {each.name: _digest(each.tensors) for each in saved},
        }
        text = json.dumps(content)
        path = self.directory / f"{saved[0].name}.safetensors"
        partial = path.with_name(f"{PARTIAL}{path.name}")
        try:
            self.directory.mkdir(exist_ok=True)
            save_file(tensors, partial, {"rankwise": text, "sha256": _text_digest(text)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            rename(partial, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            reason = getattr(error, "strerror", None) or error
            raise RankwiseError(f"cannot write {str(path)!r}: {reason}") from None
        self._remove_covered(path, set(trials))

    def read(self, name: str, made_with: Mapping[str, Any]) -> SavedTrial | None:
        """Return the trial of a name at its last step kept; None if it was not kept here.

        A file made with other settings is left where it is, and is not read. A damaged one is
        removed: the trial goes on from an older file, or begins anew.
        """
        found = [
            (content["trials"][name]["started"], path, content)
            for path, content in self._files().items()
            if name in content["trials"] and content.get("made_with") == made_with
        ]
        for _, path, content in sorted(found, key=lambda each: each[0], reverse=True):
            tensors = _tensors(path, f"{name}/")
            if _digest(tensors) == content["digests"][name]:
                return SavedTrial(name, tensors, content["trials"][name], made_with)
            path.unlink(missing_ok=True)
        return None

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


def _tensors(path: Path, prefix: str) -> "dict[str, torch.Tensor]":
    """Return the tensors of a trial by their short names; none if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            own = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
            return {short: file.get_tensor(key) for short, key in own.items()}
    except (OSError, SafetensorError) as error:
        if ran_out(error) is not None:  # the file may be good, and would be removed
            raise
        return {}


def _digest(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return the SHA-256 of tensors: names, types, shapes and contents."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: Path) -> Mapping[str, Any] | None:
    """Return what a file says of its trials; None if it is no checkpoint or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if metadata["sha256"] != _text_digest(metadata["rankwise"]):
            return None
        content: dict[str, Any] = json.loads(metadata["rankwise"])
        return content
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if ran_out(error) is not None:
            raise
        return None
