"""The request of a sweep: one declaration for the command line, YAML files and Python calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict, get_args

from pydantic import AfterValidator

from rankwise.decide.config import DecisionConfig
from rankwise.engine.config import (
    BASE_CHANGING_INITS,
    FUSED_INITS,
    LANGUAGE_MODEL_WARMUP,
    WARMUP_OPTION,
    AttentionName,
    CheckpointingName,
    EngineName,
    InitName,
    OptimizerName,
    SchedulerName,
    ShareOrZero,
    TrainingConfig,
)
from rankwise.errors import RequestError, reading, shown
from rankwise.models.config import ModelConfig, PrecisionName, Quantization
from rankwise.settings import (
    Bytes,
    FilePath,
    Flag,
    Later,
    Option,
    OrLater,
    Several,
    any_case,
    named,
)
from rankwise.strategies.config import SearchConfig, StrategyName
from rankwise.tasks.config import DataConfig, TaskName
from rankwise.trainers.config import TrainerConfig, check_trainer_request

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(
    DecisionConfig, TrainerConfig, TrainingConfig, SearchConfig, DataConfig, ModelConfig
):
    """The request of a sweep: the settings of all its components, and what concerns the whole.

    Attributes:
        warmup_ratio: None until `for_task` sets the default of the task.

    Raises:
        RequestError: a value is not allowed; the message names it and what is allowed.
    """

    warmup_ratio: Annotated[
        ShareOrZero,
        OrLater,
        replace(
            WARMUP_OPTION,
            unset=f"{LANGUAGE_MODEL_WARMUP:g} for language models, "
            f"{TrainingConfig.warmup_ratio:g} for others",
        ),
    ] = Later
    engine: Annotated[
        EngineName,
        Option(
            "Training engine: fused (ours, many trials at once without padding) or reference (PEFT "
            "and the Trainer of transformers).",
            "machine",
        ),
    ] = "fused"
    max_memory: Annotated[
        Bytes | None,
        Option(
            "Train as many trials at once as this memory holds, as in 6GB.",
            "machine",
            "SIZE",
            "all that is free; on a CPU at most 4 trials, one per core",
        ),
    ] = None
    out: Annotated[
        FilePath,
        Option("Sweep directory; the same command resumes an interrupted sweep.", "output", "DIR"),
    ] = Path("rankwise-out")
    extend: Annotated[
        Flag,
        Option(
            "Add seeds to a finished sweep in --out: to all of its ranks, or to some.", "output"
        ),
    ] = False
    diagnose: Annotated[
        Flag,
        Option(
            "After the decision, train one more trial, with twice the steps or of the largest "
            "rank: it tells whether the task is short of rank or of steps.",
            "decision",
        ),
    ] = False
    report_to: Annotated[
        tuple[Annotated[Tracker, any_case(*TRACKERS)], ...],
        Several,
        AfterValidator(lambda names: tuple(dict.fromkeys(names))),
        Option(
            f"Report every trial to these trackers: {', '.join(TRACKERS)}.",
            "output",
            "TRACKER,...",
            "none",
        ),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer is not None:
            check_trainer_request(self)
        if self.engine == "fused" and self.use_dora:
            raise RequestError(
                "use_dora: the fused engine trains plain LoRA only; add --engine reference"
            )
        if self.engine == "fused" and self.init not in FUSED_INITS:
            raise RequestError(
                f"init {self.init!r}: the fused engine takes only values that need neither the "
                f"base's weights nor data ({', '.join(FUSED_INITS)}); add --engine reference"
            )
        if self.engine == "reference" and self.attention != "auto":
            raise RequestError(
                f"attention {self.attention!r} is a kernel of the fused engine; with --engine "
                "reference leave it out, and transformers chooses"
            )
        if self.use_dora and self.strategy == "once":
            raise RequestError(
                "use_dora: strategy once truncates adapters, and DoRA's cannot be truncated (their "
                "magnitudes scale base weight and delta-W together); take grid, race, ends or "
                "escalate"
            )
        odd = [rank for rank in self.ranks if rank % 2]
        if self.init == "orthogonal" and odd:
            raise RequestError(
                f"init 'orthogonal' halves the rank, and rank {odd[0]} is odd; give even ranks"
            )
        if self.init in BASE_CHANGING_INITS and self.quantization != "none":
            raise RequestError(
                f"init {self.init!r} takes a part out of the base's weights, which a quantised "
                f"base does not give back exactly; with --quantization {self.quantization} allowed "
                f"are {', '.join(FUSED_INITS)}, eva"
            )


def for_task(config: SweepConfig, task_type: str) -> SweepConfig:
    """Return the request with the defaults that depend on the task, such as ``CAUSAL_LM``."""
    if config.warmup_ratio is not None or config.trainer is not None:
        return config
    is_language_model = task_type == "CAUSAL_LM"
    ratio = LANGUAGE_MODEL_WARMUP if is_language_model else TrainingConfig.warmup_ratio
    return replace(config, warmup_ratio=ratio)


class GridSettings(TypedDict, total=False):
    """Keyword arguments of `rankwise.run_rank_comparison`, for editors and type checkers."""

    model: str | Path | None
    trust_remote_code: bool
    quantization: Quantization
    target_modules: str | Sequence[str]
    data: str | Path | None
    eval_data: str | Path | None
    allow_duplicates: bool
    task: TaskName
    text_column: str | None
    text_pair_column: str | None
    label_column: str | None
    messages_column: str | None
    prompt_column: str | None
    completion_column: str | None
    max_length: int | None
    train_examples: int | None
    seeds: int
    learning_rate: float | Sequence[float] | str
    lora_alpha: str
    epochs: int
    batch_size: int
    loraplus_ratio: float
    init: InitName
    use_dora: bool
    max_steps: int | None
    lr_scheduler: SchedulerName
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    lora_dropout: float
    optimizer: OptimizerName
    device: str
    precision: PrecisionName
    gradient_checkpointing: CheckpointingName
    micro_batch_tokens: int | str | None
    attention: AttentionName
    checkpoint_minutes: float
    margin: float
    confidence: float
    no_prior: bool
    engine: EngineName
    max_memory: int | str | None
    out: str | Path
    extend: bool
    report_to: str | Sequence[str]


class SweepSettings(GridSettings, total=False):
    """Keyword arguments of `rankwise.sweep`; a test holds them to the fields of `SweepConfig`."""

    ranks: Sequence[int] | str
    strategy: StrategyName
    trainer: str | None
    trainer_config: str | Path | None
    metric: str | None
    direction: Literal["max", "min"] | None
    trials_at_once: int
    trial_timeout: float | None
    budget: float | None
    require_confidence: bool
    diagnose: bool


class YamlSettings(dict[str, object]):
    """Settings from a YAML file, each with its place for messages, as in ``sweep.yaml, line 4``."""

    def __init__(self, values: Mapping[str, object], places: Mapping[str, str]) -> None:
        super().__init__(values)
        self.places = places

    def overridden_by(self, values: Mapping[str, object]) -> "YamlSettings":
        """Return these settings with those from the command line in their place."""
        places = {name: place for name, place in self.places.items() if name not in values}
        return YamlSettings({**self, **values}, places)


def make_config(values: Mapping[str, object]) -> SweepConfig:
    """Build a config from named values, as a YAML file or a Python call gives them.

    Raises:
        RequestError: a name is not a setting (the nearest is named), or a value is not allowed.
    """
    try:
        return SweepConfig(**named(SweepConfig, values, "a sweep"))  # type: ignore[arg-type]
    except RequestError as error:
        place = getattr(values, "places", {}).get(error.setting)
        if place is None:
            raise
        raise RequestError(f"{place}: {error}") from None


def read_yaml(path: Path) -> YamlSettings:
    """Read a YAML file of sweep settings; names may have hyphens, as options have.

    Raises:
        RequestError: the file is missing, is not YAML, is not a mapping of names to values, or
            names a setting twice.
    """
    import yaml

    label = f"config {str(path)!r}"
    with reading(f"{label} cannot be read"):
        text = path.read_text(encoding="utf-8")
    with reading(f"{label} is not YAML"):
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    if root is None:
        return YamlSettings({}, {})
    if not isinstance(content, dict):
        raise RequestError(
            f"{label}: allowed is a mapping such as 'ranks: [4, 8]', not {shown(content)}"
        )
    places: dict[str, str] = {}
    spellings: set[str] = set()
    for key, _ in root.value:
        place = f"{path.name}, line {key.start_mark.line + 1}"
        if key.value in spellings:
            raise RequestError(f"{place}: {key.value!r} is given twice in the file; keep one")
        spellings.add(key.value)
        try:
            (name,) = named(SweepConfig, {key.value: None}, "a sweep")
        except RequestError as error:
            raise RequestError(f"{place}: {error}") from None
        places[name] = place
    return YamlSettings(named(SweepConfig, content, "a sweep"), places)
