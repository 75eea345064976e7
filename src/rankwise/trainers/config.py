"""Settings of the user's own trainer."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from rankwise.errors import RequestError, some
from rankwise.settings import Count, FilePath, Option, Positive, Settings, Text
from rankwise.trainers.left_adapter import same_model
from rankwise.trainers.tools import (
    ToolCommand,
    Trainer,
    check_adapters,
    check_metric,
    parse_trainer,
)

OWN_SETTINGS = ("trainer_config", "metric", "direction", "trials_at_once", "trial_timeout")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Settings):
    """Settings of the user's own trainer, which replaces the engine.

    Raises:
        RequestError: the command cannot serve a sweep, or a setting goes without it.
    """

    trainer: Annotated[
        Text | None,
        Option(
            "Command that trains one trial, or a tool (axolotl, llama-factory, trl, trl dpo) with "
            "its --trainer-config. Placeholders of a command: {rank}, {lora_alpha}, "
            "{learning_rate}, {seed}, {use_rslora}, {trial}, {out} (where it leaves the adapter), "
            "{config} (a JSON file of these), {train_data} (the training part of --data). It runs "
            "without a shell.",
            "trainer",
            "COMMAND",
            "rankwise trains",
        ),
    ] = None
    trainer_config: Annotated[
        FilePath | None,
        Option(
            "With --trainer axolotl, llama-factory, trl or trl dpo: your own YAML file for it.",
            "trainer",
            "FILE",
        ),
    ] = None
    metric: Annotated[
        Text | None,
        Option(
            "Judge by this number in a trial's logs (trainer_state.json, metrics.jsonl, JSON on "
            "stdout), as in eval_loss; without --data.",
            "trainer",
            "NAME",
        ),
    ] = None
    direction: Annotated[
        Literal["max", "min"] | None,
        Option("Which values of --metric are better.", "trainer", unset="by its name"),
    ] = None
    trials_at_once: Annotated[
        Count, Option("Trials of the trainer that run at once, a GPU each.", "trainer")
    ] = 1
    trial_timeout: Annotated[
        Positive | None,
        Option("Stop a trial of the trainer after so long.", "trainer", "MINUTES", "never"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer is not None:
            parse_trainer(self.trainer, self.trainer_config)
            return
        for name in OWN_SETTINGS:
            if getattr(self, name) != getattr(TrainerConfig, name):
                raise RequestError(f"{name} goes with trainer, which is missing", setting=name)


UNHONOURED = (
    "epochs", "batch_size", "loraplus_ratio", "init", "use_dora", "target_modules", "max_steps",
    "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "lora_dropout", "optimizer",
    "gradient_checkpointing", "micro_batch_tokens", "checkpoint_minutes", "max_memory",
    "diagnose",
)  # fmt: skip
"""Settings of our own training, which a trainer of the user decides for itself."""
SCORING = (
    "quantization", "max_length", "device", "precision", "attention", "engine", "trust_remote_code",
    "allow_duplicates",
)  # fmt: skip
"""Settings of the scoring of adapters, which needs data."""


def check_trainer_request(request: Any) -> None:
    """Refuse a whole request with settings that the user's trainer cannot honour.

    Args:
        request: a `rankwise.SweepConfig` with a trainer.

    Raises:
        RequestError: one line that names the setting and what to do.
    """
    _refuse_changed(
        request,
        UNHONOURED,
        "the trainer decides this, not rankwise; leave it out, and set it in the trainer's own "
        "command",
    )
    command = parse_trainer(request.trainer, request.trainer_config, request.data)
    _check_base(command, request)
    if request.data is None:
        _check_figures(command, request)
    elif request.model is None:
        raise RequestError("trainer goes with model, the base that it trains; add --model")
    elif request.metric is not None or request.direction is not None:
        raise RequestError(
            "metric: with --data rankwise scores the adapters itself; give one of the two"
        )
    elif isinstance(command, ToolCommand):
        check_adapters(command, truncates=request.strategy == "once")
    if request.train_examples is not None and not command.has("train_data"):
        raise RequestError("train_examples: the trainer reads its own data; pass it {train_data}")
    if not command.has("seed") and request.seeds > 1:
        raise RequestError(
            f"trainer has no {{seed}}, so {request.seeds} seeds would be the same; add it to the "
            "command, or give --seeds 1"
        )
    rates = request.learning_rate
    if not command.has("learning_rate") and (rates == "auto" or len(rates) > 1):
        raise RequestError(
            "trainer has no {learning_rate}, so all rates would be the same; add it to the "
            "command, or give its own rate with --learning-rate"
        )


def _refuse_changed(request: Any, names: Iterable[str], reason: str) -> None:
    """Refuse settings of these names that have another value than by default."""
    defaults = {field.name: field.default for field in fields(request)}
    changed = [name for name in names if getattr(request, name) != defaults[name]]
    if changed:
        raise RequestError(f"{some(changed)}: {reason}", setting=changed[0])


def _check_base(command: Trainer, request: Any) -> None:
    """Refuse another base than the one that a tool's file names."""
    if not isinstance(command, ToolCommand):
        return
    base = command.file.values[command.tool.base]
    if request.model is None and request.data is not None:
        raise RequestError(f"trainer goes with model, the base that it trains; add --model {base}")
    if request.model is not None and not same_model(base, request.model):
        raise RequestError(
            f"model {request.model!r}: {command.file.path.name} trains {base!r}; give one of them"
        )
    if request.lora_alpha.startswith(("fixed", "rslora")):
        alpha = float(request.lora_alpha.partition(":")[2])
        if not alpha.is_integer():
            raise RequestError(f"lora_alpha {alpha:g}: {request.trainer} takes whole numbers alone")


def _check_figures(command: Trainer, request: Any) -> None:
    """Refuse a request without data, judged by the trainer's figures, that needs data."""
    from rankwise.decide.metrics import higher_is_better  # it imports numpy

    _refuse_changed(
        request,
        SCORING,
        "without data rankwise loads no base and scores nothing; leave it out, or add --data",
    )
    if request.metric is None and isinstance(command, ToolCommand):
        raise RequestError(
            f"trainer {request.trainer!r} needs --data, on which rankwise scores the adapters, or "
            "--metric, a number in its logs"
        )
    if request.strategy == "once":
        raise RequestError("strategy once scores truncated adapters, so it needs --data; add it")
    if command.has("train_data"):
        raise RequestError("trainer: {train_data} is the training part of --data; add it")
    if request.metric is None and request.direction is not None:
        raise RequestError("direction goes with metric, which is missing")
    if request.metric is not None and isinstance(command, ToolCommand):
        check_metric(command, request.metric)
    unknown = request.metric is not None and higher_is_better(request.metric) is None
    if unknown and request.direction is None:
        raise RequestError(
            f"metric {request.metric!r}: its name does not tell which values are better; add "
            "--direction max or --direction min"
        )
