"""A LoRA adapter on disk, in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError, RequestError
from rankwise.lora.adapter import Adapter, pairs

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ALLOWED = f"a directory with {CONFIG} and {WEIGHTS}"


def read_adapter(directory: Path) -> Adapter:
    """Read a LoRA adapter that PEFT saved.

    Raises:
        RequestError: it is no adapter, is of another PEFT type, has its weights as pickle, or see `pairs`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shown = f"adapter {str(directory)!r}"
    config = _read_config(directory, shown)
    if not (directory / WEIGHTS).is_file():
        if (directory / PICKLE).is_file():
            raise RequestError(
                f"{shown} has its weights as pickle only ({PICKLE}), which can run code when read; where you trust it, "
                "load it with PeftModel.from_pretrained and save it with save_pretrained, which writes safetensors"
            )
        raise RequestError(f"{shown}: the directory has no {WEIGHTS}")
    try:
        adapter = Adapter(load_file(directory / WEIGHTS), config)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{shown}: {WEIGHTS} cannot be read: {error}") from None
    try:
        pairs(adapter)
    except RequestError as error:
        raise RequestError(f"{shown}: {error}") from None
    return adapter


def _read_config(directory: Path, shown: str) -> dict[str, Any]:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "no such directory"
        raise RequestError(f"{shown}: {what}; allowed is {ALLOWED}")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = next(
            (name for name in ("best", "adapter") if (directory / name / CONFIG).is_file()), None
        )
        hint = (
            f" (did you mean {str(directory / inside)!r}?)" if inside else f"; allowed is {ALLOWED}"
        )
        raise RequestError(f"{shown}: the directory has no {CONFIG}{hint}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{shown}: {CONFIG} cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise RequestError(f"{shown} is of PEFT type {kind!r}; allowed is 'LORA'")
    return config


def refuse_taken(directory: Path) -> None:
    """Refuse to write an adapter where something lies.

    Raises:
        RequestError: it is a file, or a directory with files in it.
    """
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"out {str(directory)!r} is a file; name a new or empty directory")
    if directory.is_dir() and (inside := next(directory.iterdir(), None)) is not None:
        raise RequestError(
            f"out {str(directory)!r} is not empty (it holds {inside.name}); name a new directory"
        )


def write_adapter(adapter: Adapter, directory: Path) -> None:
    """Write an adapter in one piece: under a temporary name beside its own, then renamed.

    Raises:
        RequestError: something lies there already.
        RankwiseError: it cannot be written.
    """
    from safetensors.torch import save

    refuse_taken(directory)
    directory = directory.absolute()
    partial = directory.with_name(f".partial-{directory.name}")
    files = {
        CONFIG: (json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: save(
            {name: tensor.contiguous() for name, tensor in adapter.tensors.items()},
            {"format": "pt"},
        ),
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
