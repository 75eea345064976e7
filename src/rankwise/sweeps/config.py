"""What a sweep is asked to do: the one source for command-line options, YAML keys and Python arguments."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rankwise.checks import (
    check_flag,
    check_number,
    check_path,
    check_text,
    check_whole,
    parse_bytes,
)
from rankwise.errors import RequestError, nearest, shown, some
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models.targets import REGEX_SIGNS, TargetModules, parse_targets

AUTO: Literal["auto"] = "auto"
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
ENGINES = ("fused", "reference")
TASKS = ("auto", "classification", "regression", "sft")
QUANTIZATIONS = ("none", "int8", "nf4", "nf4-dq")
FUSED_INITS = ("default", "gaussian", "orthogonal")  # drawn from the seed alone
BASE_CHANGING_INITS = ("pissa", "olora")  # take a part out of the base's weights
INITS = (*FUSED_INITS, "eva", *BASE_CHANGING_INITS)
OTHER_NAMES = {"learning_rates": "learning_rate"}
STRATEGIES = ("grid", "once", "escalate", "race")


def _items(value: object) -> list[object]:
    """Split ``"4,8"``, or take several values or a single one as they are: a list, a set, an array."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    if isinstance(value, Set):  # in an order that the next process has too
        return sorted(value, key=str)
    try:
        return list(value)
    except TypeError:  # an array of no dimension
        return [value]


def _whole_items(name: str, value: object, *, at_least: int) -> tuple[int, ...]:
    numbers = [check_whole(name, item, at_least=at_least) for item in _items(value)]
    if not numbers:
        raise RequestError(f"{name}: none given; allowed is a list such as 4,8,16,32")
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise RequestError(f"{name}: {some(twice)} given more than once; name each once")
    return tuple(sorted(numbers))


def _learning_rate(value: object) -> Literal["auto"] | tuple[float, ...]:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    try:
        rates = [check_number("learning_rate", item, above=0, below=10) for item in _items(value)]
    except RequestError as error:
        raise RequestError(f"{error}, or {AUTO!r}") from None
    if not rates:
        raise RequestError(
            "learning_rate: none given; allowed is 'auto', a rate, or several such as 1e-3,2e-3,4e-3"
        )
    return tuple(sorted(set(rates)))


def _model(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise RequestError(
            f"model {shown(value)}: allowed is a directory with config.json, a GGUF file, or a hub id"
        )
    return value


def _targets(value: object) -> TargetModules:
    # A regular expression may have commas of its own.
    items = [value] if isinstance(value, str) and REGEX_SIGNS & set(value) else _items(value)
    names = [check_text("target_modules", item) for item in items]
    if not names:
        raise RequestError(
            "target_modules: none given; allowed is 'all-linear' or layer names such as query,value"
        )
    return parse_targets(names)


def _choice(name: str, allowed: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: object) -> str:
        matches = {option.lower(): option for option in allowed}
        text = value.strip().lower() if isinstance(value, str) else ""
        if text not in matches:
            raise RequestError(
                f"{name} {shown(value)}: allowed are {', '.join(allowed)}{nearest(text, matches)}"
            )
        return matches[text]

    return parse


def _one_of(name: str, allowed: tuple[str, ...], value: object) -> str:
    if not isinstance(value, str) or value not in allowed:
        near = nearest(value, allowed) if isinstance(value, str) else ""
        raise RequestError(
            f"{name} {shown(value)}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}{near}"
        )
    return value


def _trackers(value: object) -> tuple[str, ...]:
    names = [check_text("report_to", item).strip().lower() for item in _items(value)]
    for name in names:
        if name not in TRACKERS:
            raise RequestError(
                f"report_to {shown(name)}: allowed are {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
            )
    return tuple(dict.fromkeys(names))


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


def _option(default: object, help: str, parse: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"help": help, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep's request. Every field is a command-line option, a YAML key and a Python argument of that name.

    Values are parsed and checked when the object is made, so text from the command line (``"4,8"``) and Python
    values (``[4, 8]``) mean the same.

    Raises:
        RequestError: a value is not allowed; the message names it and what is.
    """

    model: str | None = _option(
        None,
        "Base model: a directory, a GGUF file, or a hub id. Default: the MiniLM-L6 sample.",
        _optional(_model),
    )
    task: str = _option(
        AUTO,
        "classification, regression (labels are numbers) or sft (instructions or plain texts to a causal language "
        "model); auto tells by the columns.",
        lambda value: _one_of("task", TASKS, value),
    )
    data: Path | None = _option(
        None,
        "Training data: CSV, TSV, JSON lines, Parquet, a directory that datasets saved, or a hub's data set as "
        "OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT. Default: the Rotten Tomatoes sample.",
        _optional(lambda value: check_path("data", value)),
    )
    eval_data: Path | None = _option(
        None,
        "Held-out data. Default: a stratified part of the training data.",
        _optional(lambda value: check_path("eval_data", value)),
    )
    allow_duplicates: bool = _option(
        False,
        "Let eval_data hold texts that the training data holds too.",
        lambda value: check_flag("allow_duplicates", value),
    )
    text_column: str | None = _option(
        None,
        "Column with the texts. Default: found by its name.",
        _optional(lambda value: check_text("text_column", value)),
    )
    text_pair_column: str | None = _option(
        None,
        "Column with the second text of each pair. Default: found by its name, if at all.",
        _optional(lambda value: check_text("text_pair_column", value)),
    )
    label_column: str | None = _option(
        None,
        "Column with the labels. Default: found by its name.",
        _optional(lambda value: check_text("label_column", value)),
    )
    messages_column: str | None = _option(
        None,
        "sft: column with lists of messages. Default: found by its name.",
        _optional(lambda value: check_text("messages_column", value)),
    )
    prompt_column: str | None = _option(
        None,
        "sft: column with the prompts. Default: found by its name.",
        _optional(lambda value: check_text("prompt_column", value)),
    )
    completion_column: str | None = _option(
        None,
        "sft: column with the completions. Default: found by its name.",
        _optional(lambda value: check_text("completion_column", value)),
    )
    ranks: tuple[int, ...] = _option(
        (4, 8, 16, 32),
        "Ranks to compare, as in 4,8,16,32.",
        lambda value: _whole_items("rank", value, at_least=1),
    )
    strategy: str = _option(
        "grid",
        "Which trials to run: grid (every rank), race (drop ranks that are shown to be worse), escalate (up from 8, "
        "then down) or once (train the largest, cut it to the others).",
        lambda value: _one_of("strategy", STRATEGIES, value),
    )
    budget: float | None = _option(
        None,
        "Minutes of training and scoring after which no trial is begun. Default: no end.",
        _optional(lambda value: check_number("budget", value, above=0)),
    )
    seeds: int = _option(
        2,
        "Trials per rank, each with its own seed.",
        lambda value: check_whole("seeds", value, at_least=1),
    )
    learning_rate: Literal["auto"] | tuple[float, ...] = _option(
        AUTO,
        "auto (each rank's own best, by search), one rate, or several as in 1e-3,2e-3.",
        _learning_rate,
    )
    epochs: int = _option(
        1, "Passes over the training data.", lambda value: check_whole("epochs", value, at_least=1)
    )
    batch_size: int = _option(
        8,
        "Examples in a training batch.",
        lambda value: check_whole("batch_size", value, at_least=1),
    )
    max_length: int | None = _option(
        None,
        "Tokens kept of each text. Default: 256; of sft 1024.",
        _optional(lambda value: check_whole("max_length", value, at_least=4)),
    )
    train_examples: int | None = _option(
        None,
        "Train on this many examples only. Default: all (1000 of the sample).",
        _optional(lambda value: check_whole("train_examples", value, at_least=2)),
    )
    target_modules: TargetModules = _option(
        "all-linear",
        "Layers that get an adapter: all-linear, attention, mlp, names as in query,value, or a regex.",
        _targets,
    )
    quantization: str = _option(
        "none",
        "Of the frozen base's linear layers: none, int8, nf4, or nf4-dq (double quantisation); extra 'qlora'.",
        _choice("quantization", QUANTIZATIONS),
    )
    lora_alpha: str = _option(
        "r",
        "lora_alpha for each rank: r, 2r, fixed:32 or rslora.",
        lambda value: parse_alpha_policy(value).name,
    )
    init: str = _option(
        "default",
        f"Initial values of the adapter: {', '.join(INITS)}; eva, pissa and olora with --engine reference.",
        _choice("init", INITS),
    )
    use_dora: bool = _option(
        False,
        "Train DoRA's magnitudes as well, with --engine reference.",
        lambda value: check_flag("use_dora", value),
    )
    loraplus_ratio: float = _option(
        1.0,
        "LoRA+: learning rate of B divided by that of A, for example 16.",
        lambda value: check_number("loraplus_ratio", value, above=0),
    )
    margin: float = _option(
        0.02,
        "Held-out loss that a smaller rank may cost: nats per example, of sft nats per token, of regression a share "
        "of the labels' variance.",
        lambda value: check_number("margin", value, above=0),
    )
    confidence: float = _option(
        0.95,
        "Confidence of the decision.",
        lambda value: check_number("confidence", value, above=0, below=1),
    )
    engine: str = _option(
        "fused",
        "What trains: fused (ours, without padding), or reference (PEFT and transformers' Trainer).",
        lambda value: _one_of("engine", ENGINES, value),
    )
    max_memory: int | None = _option(
        None,
        "Train as many trials at once as this holds, as in 6GB. Default: what fits, on a CPU up to its cores and 4.",
        _optional(lambda value: parse_bytes("max_memory", value)),
    )
    trust_remote_code: bool = _option(
        False,
        "Run Python code that comes with the model.",
        lambda value: check_flag("trust_remote_code", value),
    )
    out: Path = _option(
        Path("rankwise-out"),
        "The sweep directory; the same command resumes it.",
        lambda value: check_path("out", value),
    )
    report_to: tuple[str, ...] = _option(
        (),
        f"Trackers to report every trial to, as in tensorboard,mlflow: {', '.join(TRACKERS)}.",
        _trackers,
    )
    extend: bool = _option(
        False,
        "Go on with a finished sweep in out, with more seeds.",
        lambda value: check_flag("extend", value),
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, item.metadata["parse"](getattr(self, item.name)))
        columns = [
            name for name in (item.name for item in fields(self)) if name.endswith("_column")
        ]
        alone = [name for name in ("eval_data", *columns) if getattr(self, name) is not None]
        if self.data is None and alone:
            raise RequestError(f"{alone[0]} goes with data, which is missing")
        if self.allow_duplicates and self.eval_data is None:
            raise RequestError("allow_duplicates goes with eval_data, which is missing")
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
        if self.init in BASE_CHANGING_INITS and self.use_dora:
            raise RequestError(
                f"init {self.init!r} with use_dora cannot be saved for the base as it is: DoRA's magnitudes are those "
                "of the base without the part that was taken out; give one of the two"
            )
        if self.init in BASE_CHANGING_INITS and self.quantization != "none":
            raise RequestError(
                f"init {self.init!r} takes a part out of the base's weights, which a quantised base does not give back "
                f"exactly; with --quantization {self.quantization} allowed are {', '.join(FUSED_INITS)}, eva"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = asdict(self)
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
    known = [item.name for item in fields(SweepConfig)]
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
