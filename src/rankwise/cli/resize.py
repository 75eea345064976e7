"""The command ``rankwise resize``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from rankwise.cli.options import Command, Output, print_json
from rankwise.settings import FilePath, Option

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
        Option("Rank of all layers; above the present rank the adapter grows.", "adapter", "R"),
    ] = None
    energy: Annotated[
        Size,
        Option(
            "Give each layer the smallest rank that keeps this share of its squared singular "
            "values.",
            "adapter",
            "SHARE",
        ),
    ] = None
    rank_pattern: Annotated[
        Size,
        Option(
            "Keep at most this many parameters, divided among the layers by singular energy.",
            "adapter",
            "auto:PARAMS",
        ),
    ] = None
    seed: Annotated[
        Size, Option("Seed of the new rows of A where the adapter grows.", "adapter", "N")
    ] = "0"


def run(settings: Mapping[str, Any]) -> None:
    """Truncate or grow an adapter."""
    request = ResizeRequest(**settings)
    from rankwise.lora.resize import resize
    from rankwise.report.inspect_report import print_resized

    sizes = {name: getattr(request, name) for name in ("rank", "energy", "rank_pattern", "seed")}
    resized = resize(request.adapter, request.out, **sizes)
    if request.json:
        print_json(resized.as_dict())
    else:
        print_resized(resized)


COMMAND = Command(
    description="Truncate a PEFT LoRA adapter to a lower rank, by the best approximation of each "
    "layer's update, or grow it to a higher rank without changing the model's output. Takes "
    "exactly one of --rank, --energy and --rank-pattern.",
    examples=(
        "resize my-sweep/best smaller --rank 4",
        "resize my-sweep/best smaller --energy 0.95",
    ),
    requests=(ResizeRequest,),
    run=run,
)
