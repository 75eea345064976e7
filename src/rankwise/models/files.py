"""A model's files: refused where they cannot be loaded, and fingerprinted, without loading anything."""

import hashlib
import os
import re
from importlib.util import find_spec
from pathlib import Path

from rankwise.errors import RequestError

GGUF = ".gguf"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # what begins with a dot is a path
PIECE = 1 << 20  # bytes hashed at either end of a weights file


def check_model_files(name: str) -> None:
    """Refuse a model directory that cannot be loaded, before anything heavy is imported.

    Raises:
        RequestError: no such directory, no ``config.json``, or no safetensors weights.
    """
    path = Path(name)
    if path.suffix == GGUF and path.is_file():
        if find_spec("gguf") is None:
            raise RequestError(
                f"model {name!r} is a GGUF file, which needs a package: pip install 'rankwise[gguf]'"
            )
        return
    if not path.is_dir():
        if path.exists() or not HUB_ID.fullmatch(name):
            what = "is a file, not a directory" if path.exists() else "no such directory"
            raise RequestError(
                f"model {name!r}: {what}; allowed is a directory with config.json, a GGUF file, or a hub id"
            )
        return  # perhaps a hub id; loading tells
    if not (path / "config.json").is_file():
        raise RequestError(f"model {name!r}: the directory has no config.json")
    if not any(path.glob("*.safetensors")):
        pickles = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)
        )
        if pickles:
            raise RequestError(
                f"model {name!r} has its weights as pickle only ({pickles[0]}), which can run code when read; "
                "convert them to safetensors (model.save_pretrained writes it)"
            )
        raise RequestError(f"model {name!r}: the directory has no weights (*.safetensors)")


def load_arguments(name: str) -> tuple[str, dict[str, str]]:
    """Return what ``from_pretrained`` takes for a model: a directory or hub id, and the file of a GGUF model."""
    path = Path(name)
    return (
        (str(path.parent), {"gguf_file": path.name})
        if path.suffix == GGUF and path.is_file()
        else (name, {})
    )


def model_fingerprint(name: str) -> str:
    """Return a digest of a model's files: small ones whole, of each weights file size and both ends.

    The header of a safetensors or GGUF file, with every tensor's name and shape, lies at its start. Hashing tens of
    gigabytes in full would cost more than it tells. A hub id stands for itself.
    """
    directory = Path(name)
    files = [directory]
    if directory.is_dir():
        files = sorted(
            [*directory.glob("*.json"), *directory.glob("*.safetensors"), *directory.glob("*.txt")]
        )
    elif not directory.is_file():
        return f"hub:{name}"
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if path.suffix not in (".safetensors", GGUF) or size <= 2 * PIECE:
                digest.update(file.read())
            else:
                digest.update(file.read(PIECE))
                file.seek(-PIECE, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()
