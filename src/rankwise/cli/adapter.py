"""The commands ``rankwise inspect`` and ``rankwise resize``: adapters that are there already."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_adapter_commands(commands: Any) -> None:
    """Add the two commands to the others."""
    inspect = commands.add_parser(
        "inspect",
        help="spectrum, effective rank and stable rank of a PEFT LoRA adapter, layer by layer",
        description="Tell the singular values of what a PEFT LoRA adapter adds to each layer, and how much of its rank "
        "each layer uses; with a second adapter, which directions the two share.",
        allow_abbrev=False,
    )
    inspect.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="directory of an adapter, as PEFT saves it"
    )
    inspect.add_argument(
        "other", nargs="?", type=Path, metavar="OTHER", help="a second one, of the same base model"
    )
    inspect.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the spectra, or with OTHER the similarity: FILE.html or FILE.png",
    )
    inspect.set_defaults(run=_inspect)

    resize = commands.add_parser(
        "resize",
        help="cut or grow a PEFT LoRA adapter",
        description="Cut a PEFT LoRA adapter to a lower rank, by the best approximation of what it adds to each layer, "
        "or grow it to a higher one without changing what it does. Exactly one of --rank, --energy, --rank-pattern.",
        allow_abbrev=False,
    )
    resize.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="directory of an adapter, as PEFT saves it"
    )
    resize.add_argument(
        "out", type=Path, metavar="OUT", help="directory of the new one, new or empty"
    )
    resize.add_argument(
        "--rank", metavar="X", help="rank of all layers; above the present one the adapter grows"
    )
    resize.add_argument(
        "--energy",
        metavar="X",
        help="per layer, the smallest rank that keeps this share of the squared singular values",
    )
    resize.add_argument(
        "--rank-pattern",
        metavar="auto:PARAMS",
        help="at most so many parameters, shared among the layers by singular energy",
    )
    resize.add_argument(
        "--seed", metavar="X", default="0", help="of the new rows where it grows. Default: 0."
    )
    resize.set_defaults(run=_resize)


def _inspect(options: argparse.Namespace) -> None:
    if options.plot is not None:
        from rankwise.report.figures import check_plot_path

        check_plot_path(options.plot)
    from rankwise.lora.inspection import inspect_adapter

    found = inspect_adapter(options.adapter, options.other)
    if options.plot is not None:
        from rankwise.report.inspect_report import write_inspection_plot

        write_inspection_plot(found, options.plot)
    if options.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.inspect_report import print_inspection

    print_inspection(found)
    if options.plot is not None:
        print(f"Plot: {options.plot}")


def _resize(options: argparse.Namespace) -> None:
    from rankwise.lora.resize import resize

    done = resize(
        options.adapter,
        options.out,
        rank=options.rank,
        energy=options.energy,
        rank_pattern=options.rank_pattern,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(done.as_dict(), indent=2, allow_nan=False))
        return
    from rankwise.report.inspect_report import print_resized

    print_resized(done)
