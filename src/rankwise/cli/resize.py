"""The command ``rankwise resize``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, Output
from rankwise.settings import ADAPTER, FilePath, Option

Size = Annotated[Any, "checked by rankwise.lora.resize, which takes exactly one size"]


@dataclass(frozen=True, kw_only=True)
class ResizeRequest(Output):
    """An adapter and the size that it should get."""

    adapter: Annotated[
        FilePath,
        Option("Directory of an adapter, as PEFT saves it.", metavar="ADAPTER", positional=True),
    ]
    out: Annotated[
        FilePath,
        Option("Directory of the resized adapter, new or empty.", metavar="OUT", positional=True),
    ]
    rank: Annotated[
        Size,
        Option("Rank of all layers; above the present rank the adapter grows.", ADAPTER, "R"),
    ] = None
    energy: Annotated[
        Size,
        Option(
            "Give each layer the smallest rank that keeps this share of its squared singular "
            "values.",
            ADAPTER,
            "SHARE",
        ),
    ] = None
    rank_pattern: Annotated[
        Size,
        Option(
            "Keep at most this many parameters, divided among the layers by singular energy.",
            ADAPTER,
            "auto:PARAMS",
        ),
    ] = None
    seed: Annotated[
        Size, Option("Seed of the new rows of A where the adapter grows.", ADAPTER, "N")
    ] = "0"


def run(settings: Mapping[str, Any]) -> None:
    """Truncate or grow an adapter."""
    asked = ResizeRequest(**settings)
    from rankwise.lora.resize import resize

    done = resize(
        asked.adapter,
        asked.out,
        rank=asked.rank,
        energy=asked.energy,
        rank_pattern=asked.rank_pattern,
        seed=asked.seed,
    )
    if asked.json:
        print(json.dumps(done.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.inspect_report import print_resized

    print_resized(done)


COMMAND = Command(
    description="Truncate a PEFT LoRA adapter to a lower rank, by the best approximation of what it "
    "adds to each layer, or grow it to a higher rank without changing what it does. Takes exactly "
    "one of --rank, --energy and --rank-pattern.",
    examples=(
        "resize my-sweep/best smaller --rank 4",
        "resize my-sweep/best smaller --energy 0.95",
    ),
    requests=(ResizeRequest,),
    run=run,
)
