"""LoRA adapters on disk in PEFT's format: a config in JSON and weights in safetensors."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError, RequestError, reading
from rankwise.lora.adapter import Adapter, factor_pairs
from rankwise.lora.foreign import (
    CONFIG,
    POINTER_ADVICE,
    WEIGHTS,
    explain_config,
    explain_directory,
    explain_names,
    explain_path,
    explain_weights,
    is_pointer,
)
from rankwise.lora.parts import plain_names

if TYPE_CHECKING:
    from torch import Tensor


COMPANIONS = (
    "README.md",
    "LICENSE*",
    "chat_template*",
    "additional_chat_templates",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""Files that go with a resized adapter: its card, its tokenizer and processor, chat templates."""


def read_adapter(directory: Path) -> Adapter:
    """Read a LoRA adapter that PEFT saved, or one with the names of its tensors in a state dict.

    Raises:
        RequestError: The directory holds no adapter, one of another PEFT type or tool, weights as
            pickle, or factors that `rankwise.lora.adapter.factor_pairs` refuses.
    """
    label = f"adapter {str(directory)!r}"
    try:
        with reading("it cannot be read"):
            config = _read_config(directory)
            adapter = Adapter(_read_tensors(directory), config)
            factor_pairs(adapter)
    except RequestError as error:
        # "adapter 'x' is of MLX", but "adapter 'x': the directory has no weights"
        joined = " " if str(error).startswith(("is ", "has ", "holds ")) else ": "
        raise RequestError(f"{label}{joined}{error}") from error.__cause__
    return adapter


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise RequestError(explain_path(directory))
    if not (directory / CONFIG).is_file():
        raise RequestError(explain_directory(directory))
    with reading(f"{CONFIG} cannot be read"):  # editors on Windows put a byte order mark in front
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8-sig"))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise RequestError(explain_config(config))
    return config


def _read_tensors(directory: Path) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    path = directory / WEIGHTS
    if not path.is_file():
        raise RequestError(explain_weights(directory))
    if is_pointer(path):
        raise RequestError(f"{WEIGHTS} {POINTER_ADVICE}")
    with reading(f"{WEIGHTS} cannot be read"):
        tensors = load_file(path)
    if known := explain_names(tensors):
        raise RequestError(f"{WEIGHTS} {known}")
    return plain_names(tensors)


def companions(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and folders beside an adapter that go with it, and the others."""
    kept, left = [], []
    for path in sorted(directory.iterdir()):
        if any(path.match(pattern) for pattern in COMPANIONS):
            kept.append(path)
        elif path.name not in (CONFIG, WEIGHTS) and not path.name.startswith("."):
            left.append(path)
    return kept, left


def write_adapter(adapter: Adapter, directory: Path, beside: Sequence[Path] = ()) -> None:
    """Write an adapter to a new or empty directory, completely or not at all.

    Args:
        adapter: The adapter.
        directory: The directory.
        beside: Files and folders to copy into it.

    Raises:
        RequestError: The directory is not empty.
        RankwiseError: It cannot be written.
    """
    from safetensors.torch import save

    check_new_directory(directory)
    directory = directory.absolute()
    partial = directory.with_name(f".partial-{directory.name}")
    tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors.items()}
    files = {
        CONFIG: (json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: save(tensors, {"format": "pt"}),
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in files.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in beside:
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, partial / path.name)
        os.replace(partial, directory)
    except OSError as error:
        raise RankwiseError(f"cannot write {str(directory)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_directory(directory: Path) -> None:
    """Refuse to write an adapter to a file or to a directory that is not empty."""
    label = f"out {str(directory)!r}"
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"{label} is a file; name a new or empty directory")
    if directory.is_dir() and (inside := next(directory.iterdir(), None)) is not None:
        raise RequestError(f"{label} is not empty (it holds {inside.name}); name a new directory")
