"""Helpers for tests of configs: schemas, comments, and the tools' own parsers."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())
KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


def run(code: str) -> dict[str, Any]:
    """Run exported Python as a user would, and return its names."""
    names: dict[str, Any] = {}
    exec(compile(code, "peft_config.py", "exec"), names)
    return names


def assert_known(settings: dict[str, Any], known: dict[str, list[str]]) -> None:
    """Check that a schema has every setting, with a type that fits its value."""
    for name, value in settings.items():
        kinds = known[name]
        assert (
            f"={value}" in kinds
            or KINDS[type(value)] in kinds
            or (isinstance(value, int) and "number" in kinds)
        ), f"{name}: {value!r} is none of {kinds}"


def parse_with_trl(text: str, tmp_path: Path, *more: str) -> tuple[Any, ...]:
    """Read a file as ``trl sft --config`` does."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    path = tmp_path / "trl.yaml"
    path.write_text(text)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    on_cpu = ["--bf16", "false", "--use_cpu", "true", *more]  # bf16 is refused without a GPU
    return parser.parse_args_and_config(
        ["--config", str(path), *on_cpu], fail_with_unknown_args=True
    )


def comment_of(text: str) -> str:
    """Return the comment lines of a file as one line."""
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    return " ".join(lines)


def texts_of(tokenizer: Any, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return each example's text and its supervised part, without blanks.

    Tools split blanks into tokens in different ways.
    """
    texts = []
    for row in rows:
        # Nothing comes before the first token, so its label counts in no loss.
        labels = [label for label in row["labels"][1:] if label != -100]
        whole, supervised = (tokenizer.decode(tokens) for tokens in (row["input_ids"], labels))
        texts.append(("".join(whole.split()), "".join(supervised.split())))
    return texts


def allow_llama_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip without LLaMA-Factory; let it be imported beside other versions than it asks for."""
    pytest.importorskip(
        "llamafactory",
        reason="pins another torch; see tests/exports/read_schemas.py",
    )
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    sound = ModuleType("torchaudio")  # its readers of text import it as well
    sound.__spec__ = ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", sound)
