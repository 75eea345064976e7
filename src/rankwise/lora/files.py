"""LoRA adapters on disk in PEFT's format: a config in JSON and weights in safetensors."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError, RequestError
from rankwise.lora.adapter import Adapter, factor_pairs

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ALLOWED = f"a directory with {CONFIG} and {WEIGHTS}"


def read_adapter(directory: Path) -> Adapter:
    """Read a LoRA adapter that PEFT saved.

    Raises:
        RequestError: The directory holds no adapter, one of another PEFT type, weights as pickle,
            or factors that `rankwise.lora.adapter.factor_pairs` refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    label = f"adapter {str(directory)!r}"
    config = _read_config(directory, label)
    if not (directory / WEIGHTS).is_file():
        if (directory / PICKLE).is_file():
            raise RequestError(
                f"{label} has its weights as pickle only ({PICKLE}), which can run code when read; "
                "if you trust it, load it with PEFT and save it as safetensors by save_pretrained"
            )
        raise RequestError(f"{label}: the directory has no {WEIGHTS}")
    try:
        adapter = Adapter(load_file(directory / WEIGHTS), config)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{label}: {WEIGHTS} cannot be read: {error}") from None
    try:
        factor_pairs(adapter)
    except RequestError as error:
        raise RequestError(f"{label}: {error}") from None
    return adapter


def _read_config(directory: Path, label: str) -> dict[str, Any]:
    if not directory.is_dir():
        problem = "is a file" if directory.exists() else "no such directory"
        raise RequestError(f"{label}: {problem}; allowed is {ALLOWED}")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"; allowed is {ALLOWED}"
        for inside in ("adapter", "best"):  # of a trial, of a sweep
            if (directory / inside / CONFIG).is_file():
                hint = f" (did you mean {str(directory / inside)!r}?)"
        raise RequestError(f"{label}: the directory has no {CONFIG}{hint}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{label}: {CONFIG} cannot be read: {error}") from None
    peft_type = config.get("peft_type") if isinstance(config, dict) else None
    if peft_type != "LORA":
        raise RequestError(f"{label} is of PEFT type {peft_type!r}; allowed is 'LORA'")
    return config


def write_adapter(adapter: Adapter, directory: Path) -> None:
    """Write an adapter to a new or empty directory, completely or not at all.

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
