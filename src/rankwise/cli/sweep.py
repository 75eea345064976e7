"""The command ``rankwise sweep``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli.options import Command, Output, print_line
from rankwise.errors import RequestError
from rankwise.settings import Count, FilePath, Flag, Option
from rankwise.sweeps.config import SweepConfig, YamlSettings, make_config, read_yaml

if TYPE_CHECKING:
    from rankwise.sweeps.finish import SweepResult


@dataclass(frozen=True, kw_only=True)
class SweepOutput(Output):
    """Settings of the command that are not part of the request."""

    config: Annotated[
        FilePath | None,
        Option(
            "YAML file of settings, named as the options are; options given here override it.",
            metavar="CONFIG",
            positional=True,
        ),
    ] = None
    dry_run: Annotated[
        Flag, Option("Show the trials, their memory and their time; write nothing.", "output")
    ] = False
    show: Annotated[
        Count | None,
        Option(
            "With --dry-run, show this many training examples as the model will see them, with "
            "the learnt tokens marked.",
            "output",
            unset="none",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.show is not None and not self.dry_run:
            raise RequestError(f"show {self.show} goes with --dry-run; add it")


def run(settings: Mapping[str, Any], output_settings: Mapping[str, Any]) -> None:
    """Run a sweep, or show what it would do."""
    output = SweepOutput(**output_settings)
    from_file = YamlSettings({}, {}) if output.config is None else read_yaml(output.config)
    config = make_config(from_file.overridden_by(settings))
    from rankwise.report.progress_bar import ProgressBar

    if output.dry_run:
        from rankwise.report.dry_run_table import print_dry_run
        from rankwise.sweeps.dry_run import dry_run

        with ProgressBar() as progress:
            planned = dry_run(config, progress=progress, show=output.show or 0)
        print(planned.as_json()) if output.json else print_dry_run(planned)
        return
    from rankwise.sweeps.finish import as_json
    from rankwise.sweeps.run import sweep

    with ProgressBar() as progress:
        result = sweep(config, progress=progress)
    print(as_json(result)) if output.json else _print(result)


def _print(result: "SweepResult") -> None:
    from rankwise.report.decision_table import print_decision, recommendation

    print_decision(result.decision, score=result.score)
    place = f"Adapter: {result.best}"
    if result.best is None:
        place = f"The adapter of every trial: {result.directory / 'trials'}"
    print_line(f"Recommended rank: {recommendation(result.decision)}. {place}")
    if result.export is not None:
        what = "Configs for PEFT, TRL, Axolotl and LLaMA-Factory"
        if (result.export / "command.txt").exists():
            what = "Your trainer's command with these values"
        print_line(f"{what}: {result.export}")
    print_line(f"Report: {result.report}")


COMMAND = Command(
    description="Train adapters of several ranks, decide which rank the task needs, and keep "
    "everything on disk. Without arguments it runs on a small built-in task.",
    examples=(
        "sweep --model path/to/model --data reviews.csv --out my-sweep",
        "sweep settings.yaml --budget 30 --dry-run",
    ),
    requests=(SweepConfig, SweepOutput),
    run=run,
)
