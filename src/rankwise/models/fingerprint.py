"""Digests of a model: of every tensor of its weights, and of all its other files."""

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = {
    ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx",
    ".onnx_data", ".tflite", ".ot", ".npz",
}  # fmt: skip
NOT_READ = (".md", ".gitattributes")  # endings of files that no library reads, such as the card
READ_BELOW = (".py", ".jinja")  # endings of files that count in directories below the model's too
NOT_OF_MODEL = {"sweep.json", "trials", "pyvenv.cfg"}  # a sweep or an environment below the model
EARLIER_END = 1 << 20  # bytes that earlier versions read at either end of weights
CACHED_FROM = 64 << 20  # bytes; smaller files are read in a tenth of a second
CACHE_VERSION = 2  # of the digests; another one is not read
SETTLED_SECONDS = 2.0  # a file changed later than that may change again at the same time


@dataclass(frozen=True)
class ModelDigests:
    """What a model is, by content.

    Attributes:
        files: digest of tokenizer, config, templates, code: every file but weights.
        weights: digest of all tensors by name, type, shape and content.
    """

    files: str
    weights: str


def model_digests(name: str) -> ModelDigests:
    """Return the digests of a model, whole, wherever it lies.

    The digests of large weights files are kept in a cache (`cache_directory`), by path, size and
    times of change, so a file is read once. A model of a hub is known by its commit.

    Args:
        name: directory, GGUF file or hub id, of a model that was loaded.
    """
    path = Path(name)
    if path.is_dir():
        tensors: dict[str, str] = {}
        for file in sorted(path.glob("*.safetensors")):
            tensors |= _cached_tensors(file)
        others = {str(file.relative_to(path)): _file_digest(file) for file in _other_files(path)}
        return ModelDigests(_joined(others), _joined(tensors))
    if path.is_file():  # GGUF, which holds the tokenizer too
        return ModelDigests(files=path.suffix, weights=_joined(_cached_tensors(path)))
    commit = f"hub:{name}{_hub_commit(name)}"
    return ModelDigests(files=commit, weights=commit)


def earlier_digest(name: str) -> str:
    """Return the digest that earlier versions kept of a model, by which their sweeps are known.

    It has few kinds of files, and large weights by their size and both ends.

    Args:
        name: directory, GGUF file or hub id.
    """
    path = Path(name)
    if not path.exists():
        return f"hub:{name}"
    kinds = ("json", "safetensors", "txt")
    files = [file for kind in kinds for file in path.glob(f"*.{kind}")] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if file.suffix not in (".safetensors", ".gguf") or size <= 2 * EARLIER_END:
                digest.update(stream.read())
            else:
                digest.update(stream.read(EARLIER_END))
                stream.seek(-EARLIER_END, os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()


def _other_files(directory: Path) -> list[Path]:
    """Return a model's files but weights, hidden files and those that no library reads."""
    found = {path for path in directory.iterdir() if path.suffix not in WEIGHTS}
    for folder, below, names in os.walk(directory):
        if Path(folder) != directory and NOT_OF_MODEL & {*below, *names}:
            below.clear()
            continue
        found |= {Path(folder, name) for name in names if name.endswith(READ_BELOW)}
    kept = []
    for path in sorted(found):
        is_hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.is_file() and not is_hidden and not path.name.endswith(NOT_READ):
            kept.append(path)
    return kept


def _hub_commit(name: str) -> str:
    """Return ``@`` and the commit of a hub's model that was loaded; nothing if none is known."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return f"@{Path(found).parent.name}" if isinstance(found, str) else ""


def cache_directory() -> Path:
    """Return where digests of weights are kept: ``rankwise/`` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rankwise" / "weights"


def _cached_tensors(path: Path) -> dict[str, str]:
    """Return the digest of each tensor of a file, from the cache if the file is as it was."""
    before = path.stat()
    if before.st_size < CACHED_FROM:
        return _tensors(path)
    place = str(path.resolve())
    known = {
        "path": place,
        "size": before.st_size,
        "version": CACHE_VERSION,
        "mtime": before.st_mtime_ns,
        "ctime": before.st_ctime_ns,
    }
    entry = cache_directory() / f"{hashlib.sha256(place.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(entry.read_bytes())
        tensors: dict[str, str] = content["tensors"]
        if content["file"] == known and content["sha256"] == _joined(tensors):
            return tensors
    tensors = _tensors(path)
    after = path.stat()
    changed = max(after.st_mtime, after.st_ctime)
    is_same = (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    if is_same and time.time() - changed > SETTLED_SECONDS:
        with suppress(OSError):  # a cache that cannot be written only costs time
            _write_cache(entry, {"file": known, "tensors": tensors, "sha256": _joined(tensors)})
    return tensors


def _write_cache(entry: Path, content: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = entry.with_name(f".{os.getpid()}-{entry.name}")
    partial.write_text(json.dumps(content))
    os.replace(partial, entry)


def _tensors(path: Path) -> dict[str, str]:
    """Return the digest of each tensor of a safetensors file; of the whole of any other file."""
    try:
        pieces = list(_pieces(path))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {path.name: _file_digest(path)}

    def digest(piece: tuple[str, int, int]) -> str:
        return hashlib.sha256(view[piece[1] : piece[2]]).hexdigest()

    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
        ThreadPoolExecutor(_threads()) as pool,
    ):
        digests = list(pool.map(digest, pieces))
    return {name: digest for (name, _, _), digest in zip(pieces, digests, strict=True)}


def _pieces(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield each tensor of a safetensors file: name, type, shape and length; first byte; end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not path.suffix == ".safetensors" or length > os.fstat(file.fileno()).st_size:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            # The length counts too: an end beyond that of the file would change no content.
            yield f"{name} {entry['dtype']} {entry['shape']} {end - start}", start, end


def _threads() -> int:
    """Return how many threads hash: a core each, until the memory is the limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, cores or 1)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(digests: dict[str, str]) -> str:
    """Return one digest of many, whatever their order."""
    text = json.dumps(sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()
