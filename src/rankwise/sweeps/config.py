"""What a sweep is asked to do: the one source for command-line options, YAML keys and Python arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rankwise.checks import check_flag, check_path, check_text, parse_bytes
from rankwise.decide.config import DecisionConfig
from rankwise.engine.config import BASE_CHANGING_INITS, ENGINES, FUSED_INITS, TrainingConfig
from rankwise.errors import RequestError, nearest, shown
from rankwise.models.config import ModelConfig
from rankwise.settings import items, one_of, option, optional
from rankwise.strategies.config import SearchConfig
from rankwise.tasks.config import DataConfig

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
OTHER_NAMES = {"learning_rates": "learning_rate"}


def parse_trackers(value: object) -> tuple[str, ...]:
    """Return names of trackers."""
    names = [check_text("report_to", item).strip().lower() for item in items(value)]
    for name in names:
        if name not in TRACKERS:
            raise RequestError(
                f"report_to {shown(name)}: allowed are {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
            )
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ModelConfig, DataConfig, SearchConfig, TrainingConfig, DecisionConfig):
    """A sweep's request. Every field is a command-line option, a YAML key and a Python argument of that name.

    Values are parsed and checked when the object is made, so text from the command line (``"4,8"``) and Python
    values (``[4, 8]``) mean the same.

    Raises:
        RequestError: a value is not allowed; the message names it and what is.
    """

    engine: str = option(
        "fused",
        "What trains: fused (ours, without padding), or reference (PEFT and transformers' Trainer).",
        lambda value: one_of("engine", ENGINES, value),
    )
    max_memory: int | None = option(
        None,
        "Train as many trials at once as this holds, as in 6GB. Default: what fits, on a CPU up to its cores and 4.",
        optional(lambda value: parse_bytes("max_memory", value)),
    )
    out: Path = option(
        Path("rankwise-out"),
        "The sweep directory; the same command resumes it.",
        lambda value: check_path("out", value),
    )
    report_to: tuple[str, ...] = option(
        (),
        f"Trackers to report every trial to, as in tensorboard,mlflow: {', '.join(TRACKERS)}.",
        parse_trackers,
    )
    extend: bool = option(
        False,
        "Go on with a finished sweep in out, with more seeds.",
        lambda value: check_flag("extend", value),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "fused":
            if self.use_dora:
                raise RequestError(
                    "use_dora: the fused engine trains plain LoRA only; add --engine reference"
                )
            if self.init not in FUSED_INITS:
                raise RequestError(
                    f"init {self.init!r}: the fused engine takes only values that need neither the base's weights nor "
                    f"data ({', '.join(FUSED_INITS)}); add --engine reference"
                )
        if self.use_dora and self.strategy == "once":
            raise RequestError(
                "use_dora: strategy once cuts adapters, and DoRA's are not cut (their magnitudes scale base weight and "
                "delta-W together); take grid, race or escalate"
            )
        odd = [rank for rank in self.ranks if rank % 2]
        if self.init == "orthogonal" and odd:
            raise RequestError(
                f"init 'orthogonal' halves the rank, and rank {odd[0]} is odd; give even ranks"
            )
        if self.init in BASE_CHANGING_INITS and self.quantization != "none":
            raise RequestError(
                f"init {self.init!r} takes a part out of the base's weights, which a quantised base does not give back "
                f"exactly; with --quantization {self.quantization} allowed are {', '.join(FUSED_INITS)}, eva"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.metadata}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
        return values


def _by_field(values: Mapping[Any, object]) -> dict[str, object]:
    """Return values by the names of fields: ``batch-size`` is ``batch_size``."""
    written: dict[str, object] = {}
    for name in values:
        field_name = str(name).replace("-", "_")
        field_name = OTHER_NAMES.get(field_name, field_name)
        if field_name in written:
            raise RequestError(
                f"{written[field_name]!r} and {name!r} are the same setting; give one of them"
            )
        written[field_name] = name
    return {field_name: values[name] for field_name, name in written.items()}


def make_config(values: Mapping[str, object]) -> SweepConfig:
    """Build a config from named values, as a YAML file or a Python call gives them.

    Raises:
        RequestError: a name is not a field (the nearest is named), or a value is not allowed.
    """
    known = [item.name for item in fields(SweepConfig) if item.metadata]
    named = _by_field(values)
    for name in named:
        if name not in known:
            raise RequestError(
                f"{name!r} is not a setting of a sweep{nearest(name, known)}; known: {', '.join(known)}"
            )
    return SweepConfig(**named)  # type: ignore[arg-type]


def read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML file of sweep settings; a name may be written with hyphens, as the option is.

    Raises:
        RequestError: the file is missing, is not YAML, is not a mapping of names to values, or names a setting twice.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"config {str(path)!r}: {error.strerror}") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # of a number or a date that Python has not
        raise RequestError(
            f"config {str(path)!r} is not YAML: {' '.join(str(error).split())}"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RequestError(
            f"config {str(path)!r}: allowed is a mapping such as 'ranks: [4, 8]', not {shown(content)}"
        )
    return _by_field(content)
