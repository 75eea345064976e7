"""Digests of files, by which damage is told from what was written.

A trial's directory has ``SHA256SUMS``, which ``sha256sum --check`` reads too. A JSON file of a
sweep has the digest of its other entries as its last entry.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
SEAL = "sha256"
SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def digest_of(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold; 1 and 1.0 are the same number."""
    text = json.dumps(_plain(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float) and content.is_integer():
        return int(content)
    return content


def sealed_bytes(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the bytes of a file, with the digest of its entries."""
    return json_bytes({**content, SEAL: digest_of(content)})


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the bytes of a file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def unseal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a sealed JSON object without its digest.

    Raises:
        ValueError: the digest is missing, or is not that of the other entries.
    """
    rest = {name: value for name, value in content.items() if name != SEAL}
    if SEAL not in content:
        raise ValueError(f"it has no entry {SEAL!r}")
    if content[SEAL] != digest_of(rest):
        raise ValueError("it is damaged: its SHA-256 is not the one written with it")
    return rest


def sums_bytes(contents: Mapping[str, bytes]) -> bytes:
    """Return the content of ``SHA256SUMS`` for files by their paths in a directory."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
    return "".join(sorted(lines, key=lambda line: line[66:])).encode()


def read_sums(directory: Path) -> dict[str, str] | None:
    """Read the digests of a directory's files; return None if there is no ``SHA256SUMS``.

    Raises:
        ValueError: a line is not a digest and a name.
        OSError: the file cannot be read.
    """
    path = directory / SUMS
    if not path.exists():
        return None
    sums = {}
    for line in path.read_bytes().decode().split("\n")[:-1]:
        found = SUMS_LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{SUMS} is damaged: a line is no digest and name")
        sums[found[2]] = found[1]
    return sums


def read_checked(path: Path, name: str, sums: Mapping[str, str] | None) -> bytes:
    """Read a file and hold it to its digest; without digests, only read it.

    Args:
        path: the file.
        name: its name among the digests.
        sums: digests by name.

    Raises:
        ValueError: the content is not the one that was written.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    _compare(hashlib.sha256(content).hexdigest(), name, sums)
    return content


def check_file(path: Path, name: str, sums: Mapping[str, str] | None) -> None:
    """Hold a large file to its digest, as `read_checked` does, block by block."""
    with path.open("rb") as file:
        _compare(hashlib.file_digest(file, "sha256").hexdigest(), name, sums)


def _compare(digest: str, name: str, sums: Mapping[str, str] | None) -> None:
    if sums is not None and sums.get(name) != digest:
        raise ValueError(f"damaged, its SHA-256 is not the one in {SUMS}")
