"""Writes ``schemas.json``: the settings that Axolotl and LLaMA-Factory have.

Both pin other versions of torch and transformers than this project. To renew the file, in a
separate environment:

    pip install -e . && pip install --no-deps axolotl llamafactory
    pip install addict colorama fire omegaconf pillow datasets trl
    DISABLE_VERSION_CHECK=1 python -m tests.exports.read_schemas
"""

import enum
import json
import sys
import types
import typing
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("schemas.json")
KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


def kinds(hint: Any) -> list[str]:
    """Return the JSON types of a type hint; ``=x`` for a value that is allowed by name."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return kinds(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return [f"={value}" for value in typing.get_args(hint)]
    if origin in (typing.Union, types.UnionType):
        return [kind for option in typing.get_args(hint) for kind in kinds(option)]
    if hint is type(None):
        return ["null"]
    if isinstance(hint, enum.EnumMeta):
        return [f"={member.value}" for member in hint]
    return [KINDS.get(origin or hint, "object")]  # models and other classes are mappings in YAML


def axolotl_fields() -> dict[str, list[str]]:
    """Return the types of each of Axolotl's settings."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return {
        name: sorted(set(kinds(item.annotation)))
        for name, item in AxolotlInputConfig.model_fields.items()
    }


def llama_factory_fields() -> dict[str, list[str]]:
    """Return the types of each of LLaMA-Factory's settings."""
    from llamafactory.hparams.parser import _TRAIN_ARGS

    found: dict[str, list[str]] = {}
    for part in _TRAIN_ARGS:
        hints = typing.get_type_hints(part)
        found |= {
            item.name: sorted(set(kinds(hints[item.name]))) for item in fields(part) if item.init
        }
    return found


def axolotl_dataset_fields() -> dict[str, list[str]]:
    """Return the settings of an item of Axolotl's ``datasets`` and of its ``type``."""
    from axolotl.utils.schemas.datasets import SFTDataset, UserDefinedPrompterType

    models = {"": SFTDataset, "type.": UserDefinedPrompterType}
    return {
        f"{prefix}{name}": sorted(set(kinds(item.annotation)))
        for prefix, model in models.items()
        for name, item in model.model_fields.items()
    }


def llama_factory_dataset_fields() -> dict[str, list[str]]:
    """Return the settings of an item of LLaMA-Factory's ``dataset_info.json``."""
    from llamafactory.data.parser import DatasetAttr

    hints = typing.get_type_hints(DatasetAttr)
    return {item.name: sorted(set(kinds(hints[item.name]))) for item in fields(DatasetAttr)}


if __name__ == "__main__":
    content = {
        "axolotl": {
            "version": version("axolotl"),
            "fields": axolotl_fields(),
            "dataset": axolotl_dataset_fields(),
        },
        "llamafactory": {
            "version": version("llamafactory"),
            "fields": llama_factory_fields(),
            "dataset": llama_factory_dataset_fields(),
        },
    }
    FILE.write_text(
        json.dumps(content, sort_keys=True, separators=(",", ":")).replace('],"', '],\n"') + "\n"
    )
    print(f"{FILE}: {[len(part['fields']) for part in content.values()]}", file=sys.stderr)
