"""The request of ``rankwise shrink``: one declaration for the command line and Python calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from rankwise.decide.config import DecisionConfig
from rankwise.engine.config import EngineName, auto_is_none
from rankwise.errors import RequestError
from rankwise.models.config import (
    DeviceConfig,
    ModelConfig,
    ModelName,
    PrecisionName,
    Quantization,
    TargetModules,
)
from rankwise.settings import Count, FilePath, Flag, Option, Ranks, Several, Text
from rankwise.tasks.config import DataConfig, TaskName


@dataclass(frozen=True, kw_only=True)
class ShrinkConfig(DecisionConfig, DataConfig, ModelConfig, DeviceConfig):
    """The request of ``rankwise shrink``.

    Fields without an `Option` are settings of training, which take no part here.

    Raises:
        RequestError: a value is not allowed; the message names it and what is allowed.
    """

    adapters: Annotated[
        tuple[FilePath, ...],
        Several,
        Option("Directory of an adapter, as PEFT saves it.", metavar="ADAPTER", positional=True),
    ] = ()
    data: Annotated[
        FilePath | None,
        Option(
            "Held-out examples that the adapters were not trained on, in the formats that sweep "
            "reads; all rows are used.",
            unset="the sample's, for adapters of the MiniLM-L6 sample",
        ),
    ] = None
    model: Annotated[
        ModelName | None,
        Option(
            "Base model: a directory, a GGUF file, or a hub id.",
            metavar="MODEL",
            unset="the one in adapter_config.json",
        ),
    ] = None
    labels: Annotated[
        tuple[Text, ...],
        Several,
        Option(
            "All classes in the order of the head's outputs, if it is not that of their names.",
            "columns",
            "LABEL,...",
            "the data's, sorted",
        ),
    ] = ()
    ranks: Annotated[
        Ranks | None,
        Option(
            "Ranks to truncate to.", "search", "R,R,...", "powers of two below the adapter's rank"
        ),
    ] = None
    per_layer: Annotated[
        Flag,
        Option(
            "Also try a rank for each layer at the size of each rank; both kinds share the error "
            "that the confidence allows.",
            "search",
        ),
    ] = False
    heal: Annotated[
        FilePath | None,
        Option(
            "Training data of the adapter: the first cut that fails is trained on briefly at its "
            "own rank and judged again.",
            "training",
            "TRAINING_DATA",
            "nothing is trained",
        ),
    ] = None
    heal_steps: Annotated[
        Count | None,
        auto_is_none,
        Option(
            "Optimizer steps of that training, in batches of 8.",
            "training",
            unset="auto: one pass over the training data, at most 100",
        ),
    ] = None
    engine: Annotated[
        EngineName,
        Option(
            "Engine that scores: fused (all truncations together) or reference (PEFT).", "machine"
        ),
    ] = "fused"
    out: Annotated[
        FilePath | None,
        Option(
            "New directory for the truncated adapter, decision.json and report.html.",
            "output",
            "DIR",
            "nothing is written",
        ),
    ] = None
    eval_data: FilePath | None = None
    allow_duplicates: Flag = False
    train_examples: int | None = None
    target_modules: TargetModules = "all-linear"
    no_prior: Flag = False
    require_confidence: Flag = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adapters:
            raise RequestError("adapters: none given; name the directory of an adapter")
        if self.heal is None and self.heal_steps is not None:
            raise RequestError("heal_steps goes with heal, which is missing")
        if twice := [path for path in self.adapters if self.adapters.count(path) > 1]:
            raise RequestError(f"adapter {str(twice[0])!r} given more than once; name each once")


class ShrinkSettings(TypedDict, total=False):
    """Keyword arguments of `rankwise.shrink`; a test holds them to the fields of `ShrinkConfig`."""

    model: str | Path | None
    trust_remote_code: bool
    quantization: Quantization
    data: str | Path | None
    task: TaskName
    text_column: str | None
    text_pair_column: str | None
    label_column: str | None
    messages_column: str | None
    prompt_column: str | None
    completion_column: str | None
    max_length: int | None
    labels: Sequence[str]
    ranks: Sequence[int] | str | None
    per_layer: bool
    margin: float
    confidence: float
    heal: str | Path | None
    heal_steps: int | Literal["auto"] | None
    engine: EngineName
    device: str
    precision: PrecisionName
    out: str | Path | None
