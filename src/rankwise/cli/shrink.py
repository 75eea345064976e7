"""The command ``rankwise shrink``."""

from collections.abc import Mapping
from typing import Any

from rankwise.cli.options import Command, Output, print_json, print_line
from rankwise.shrinking.config import ShrinkConfig


def run(settings: Mapping[str, Any], output_settings: Mapping[str, Any]) -> None:
    """Find the smallest rank that adapters can be truncated to."""
    output = Output(**output_settings)
    config = ShrinkConfig(**settings)
    from rankwise.report.progress_bar import ProgressBar
    from rankwise.shrinking.run import shrink

    with ProgressBar() as progress:
        result = shrink(config, progress=progress)
    document = result.as_dict()
    if output.json:
        print_json(document)
        return
    from rankwise.report.shrink_table import print_shrunk

    print_shrunk(document)
    for path in result.written:
        print_line(f"Adapter: {path}")
    if result.directory is not None:
        print_line(f"Report: {result.directory / 'report.html'}")
    elif result.verdict == "smaller":
        print("Nothing was written; --out DIR writes the truncated adapter and a report.")


COMMAND = Command(
    description="Find the smallest rank that a trained LoRA adapter can be truncated to, without "
    "training: score its truncations on held-out examples that it was not trained on, and keep the "
    "smallest that is shown to be within the margin of the adapter itself. Takes several adapters "
    "of one base model.",
    examples=(
        "shrink my-adapter --data held-out.csv --out smaller",
        "shrink adapters/a adapters/b --data held-out.jsonl --margin 0.01",
    ),
    requests=(ShrinkConfig, Output),
    run=run,
)
