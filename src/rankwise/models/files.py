"""Files of a model: checks that they can be loaded, without loading anything."""

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from rankwise.errors import RequestError, some

GGUF = ".gguf"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # a text that begins with a dot is a path


def check_model_files(name: str) -> None:
    """Refuse a model that cannot be loaded, before anything heavy is imported.

    Args:
        name: Directory, GGUF file or hub id; every hub id passes.

    Raises:
        RequestError: A file, a directory, or the package that reads GGUF files is missing.
    """
    if _is_gguf(name):
        if find_spec("gguf") is None:
            install = "pip install 'rankwise[gguf]'"
            raise RequestError(f"model {name!r} is a GGUF file, which needs a package: {install}")
        return
    directory = model_directory(name)
    if directory is None or any(directory.glob("*.safetensors")):
        return
    for pattern in ("*.bin", "*.pt", "*.pth"):
        for pickle in sorted(directory.glob(pattern)):
            raise RequestError(
                f"model {name!r} has its weights as pickle only ({pickle.name}), which can run "
                "code when read; convert them to safetensors (model.save_pretrained writes it)"
            )
    raise RequestError(f"model {name!r}: the directory has no weights (*.safetensors)")


def check_model_path(name: str) -> None:
    """Refuse a path that holds no model, before anything heavy is imported or a hub is asked.

    A name of the form ``owner/name`` may be a hub id, and passes.
    """
    if not _is_gguf(name):
        model_directory(name)


def public_name(name: str) -> str | None:
    """Return a hub id, as a model card names its base; None for a path of this machine."""
    return None if Path(name).exists() or Path(name).is_absolute() else name


def model_directory(name: str) -> Path | None:
    """Return the directory of a model that is not a GGUF file; None for a hub id.

    Raises:
        RequestError: There is no such directory, or it has no ``config.json``.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(str(config.parent) for config in path.glob("*/config.json"))
            hint = f"; models in it: {some(inside, 3)}" if inside else ""
            if (path / "adapter_config.json").is_file():
                hint = "; it holds an adapter: name its base model, or call rankwise inspect"
            raise RequestError(f"model {name!r}: the directory has no config.json{hint}")
        return path
    if not path.exists() and HUB_ID.fullmatch(name):
        return None
    problem = f"no such directory{similar_directory(name)}"
    if path.exists():
        problem = "is a file, not a directory"
        if path.name == "config.json":
            problem += f" (did you mean {str(path.parent)!r}?)"
    allowed = "a directory with config.json, a GGUF file, or a hub id"
    raise RequestError(f"model {name!r}: {problem}; allowed is {allowed}")


def similar_directory(name: str) -> str:
    """Return ``" (did you mean 'x'?)"`` for an existing directory of a similar path, or nothing."""
    path = Path(name.replace("\\", "/")).expanduser()
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).is_dir():
            try:
                names = [each.name for each in found.iterdir() if each.is_dir()]
            except OSError:  # a directory that may not be read
                return ""
            close = difflib.get_close_matches(part, names, n=1)
            if not close:
                return ""
            part = close[0]
        found /= part
    return f" (did you mean {str(found)!r}?)"


def load_arguments(name: str) -> tuple[str, dict[str, str]]:
    """Return the arguments of ``from_pretrained``: directory or hub id, and a GGUF file's name."""
    if _is_gguf(name):
        path = Path(name)
        return str(path.parent), {"gguf_file": path.name}
    return name, {}


def _is_gguf(name: str) -> bool:
    path = Path(name)
    return path.suffix == GGUF and path.is_file()
