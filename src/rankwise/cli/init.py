"""The command ``rankwise init``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rankwise.cli.options import Command, Output, print_json, print_line
from rankwise.errors import RequestError, reading
from rankwise.settings import FilePath, Option, Settings, Text


@dataclass(frozen=True, kw_only=True)
class InitConfig(Settings):
    """Settings of the command."""

    trainer: Annotated[
        Text, Option("Tool: axolotl, llama-factory, trl or 'trl dpo'.", positional=True)
    ]
    config: Annotated[
        FilePath, Option("Your own YAML file for it.", metavar="CONFIG", positional=True)
    ]
    out: Annotated[
        FilePath, Option("File to write; one that exists is left alone.", "output", "FILE")
    ] = Path("sweep.yaml")


def run(settings: Mapping[str, Any], output_settings: Mapping[str, Any]) -> None:
    """Write the file of a sweep."""
    config, output = InitConfig(**settings), Output(**output_settings)
    from rankwise.trainers.sweep_file import sweep_file

    text = sweep_file(config.trainer, config.config)
    if config.out.exists():
        raise RequestError(f"out {str(config.out)!r} exists already; name another with --out")
    with reading(f"out {str(config.out)!r}"):
        config.out.write_text(text, encoding="utf-8")
    if output.json:
        print_json({"out": str(config.out)})
        return
    print_line(f"Written: {config.out}. Read it, then: rankwise sweep {config.out} --dry-run")


COMMAND = Command(
    description="Write the commented file of a sweep in which Axolotl, LLaMA-Factory or TRL trains "
    "from your own config.",
    examples=("init axolotl my.yml", "init llama-factory my.yml --out sweep.yaml"),
    requests=(InitConfig, Output),
    run=run,
)
