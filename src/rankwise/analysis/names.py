r"""Names of settings and metrics without the prefixes of the tools that wrote them.

``params.lora_r`` (MLflow), ``config.peft.r`` (W&B), ``config/lora_r`` (Ray Tune) and
``params_lora_r`` (Optuna) all name the LoRA rank; ``metrics.eval_loss`` and ``summary.eval/loss``
name the held-out loss.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankwise.decide.metrics import LOSSES, higher_is_better, snake, split_part

# Prefixes that say that a setting, or a measured value, follows. Those of the second kind also
# occur with an underscore.
SETTING_PREFIXES = (
    "params", "param", "parameters", "config", "configs", "cfg", "hparams", "hyperparameters",
    "hyperparams", "user_attrs", "system_attrs", "attributes", "tags", "args", "training_args",
    "script_args", "train_loop_config", "trial_params",
)  # fmt: skip
MEASURE_PREFIXES = ("metrics", "metric", "summary", "values", "results", "result")
UNDERSCORED = ("params", "config", "user_attrs", "system_attrs", "hparams", "metrics", "summary",
               "values")  # fmt: skip
PREFIX = re.compile(
    rf"({'|'.join((*SETTING_PREFIXES, *MEASURE_PREFIXES))})[./](?=.)"
    rf"|({'|'.join(UNDERSCORED)})_(?=[A-Za-z])",
    re.IGNORECASE,
)
BOTH_KINDS = {"user_attrs"}  # Optuna's attributes of users hold settings and measured values

# Names of the rank, the most explicit first. A bare "rank" may be a position or a process.
RANK_NAMES = ("lora_rank", "lora_r", "lora_dim", "adapter_rank", "network_dim", "r", "rank")
SETTING_NAMES = {
    "seed": ("seed", "random_seed", "train_seed", "training_seed"),
    "learning_rate": ("learning_rate", "lr", "base_lr", "peak_lr"),
}
# Parts of the names of nested sections. They exclude settings of the same name elsewhere, such as
# ``distributed.rank`` or ``data.seed``.
LORA_SECTIONS = ("lora", "peft", "adapter")
SECTIONS = {
    "rank": (*LORA_SECTIONS, "model", "default"),
    "seed": ("train", "args", "optim"),
    "learning_rate": ("train", "args", "opt"),
}
EXAMPLE_NAMES = ("example_id", "sample_id", "example", "sample", "id", "idx", "index")
RUN_NAMES = (
    "run_name", "mlflow_runname", "name", "run", "experiment_name", "experiment", "adapter_name",
    "adapter", "adapter_path", "model_name", "model", "method", "trial_name", "display_name",
)  # fmt: skip
# Names that say nothing but that a number follows: a metric's name may be given to them.
UNNAMED = ("mean", "value", "avg", "average")
MEANS = ("mean", "avg", "average")
QUALIFIERS = (*MEANS, "best", "min", "last", "final")


@dataclass(frozen=True)
class BareName:
    """A column's name, taken apart.

    Attributes:
        prefix: "setting", "measure", "either" or, without a known prefix, "".
        sections: names of the sections around the last part, in lower case.
        last: the last part, in lower case with underscores.
        rest: all that follows the prefix, as it was written.
    """

    prefix: str
    sections: tuple[str, ...]
    last: str
    rest: str


def bare_name(written: str) -> BareName:
    """Take a column's name apart."""
    prefix, rest = "", written
    while match := PREFIX.match(rest):
        word = (match[1] or match[2]).lower()
        kind = "setting" if word in SETTING_PREFIXES else "measure"
        kind = "either" if word in BOTH_KINDS else kind
        prefix, rest = prefix or kind, rest[match.end() :]
    parts = [part for part in re.split(r"[./]", rest) if part] or [rest]
    if len(parts) > 1 and parts[-1] == "value":  # W&B's config.yaml: {"lora_r": {"value": 8}}
        parts.pop()
    return BareName(prefix, tuple(part.lower() for part in parts[:-1]), snake(parts[-1]), rest)


def is_rank_of_lora(written: str) -> bool:
    """Whether a name can only be that of a LoRA rank, as ``lora_r`` and ``peft.r`` are."""
    bare = bare_name(written)
    in_lora = any(word in part for part in bare.sections for word in LORA_SECTIONS)
    return in_lora or bare.last not in ("r", "rank")


def setting_columns(columns: Iterable[str], role: str) -> list[str]:
    """Return the columns that may hold a setting, the likeliest first.

    Args:
        columns: names as written.
        role: ``rank``, ``seed`` or ``learning_rate``.
    """
    names: Sequence[str] = RANK_NAMES if role == "rank" else SETTING_NAMES[role]
    found = {}
    for place, written in enumerate(columns):
        bare = bare_name(written)
        known = all(any(word in part for word in SECTIONS[role]) for part in bare.sections)
        if bare.last not in names or not known:
            continue
        # A logged learning rate is the schedule's at that step, not the one that was chosen.
        logged = bare.prefix == "measure" or (not bare.prefix and "/" in bare.rest)
        if role == "learning_rate" and logged:
            continue
        surely = role == "rank" and is_rank_of_lora(written)
        precedence = (not surely, names.index(bare.last), bare.prefix == "measure", place)
        found[written] = precedence
    return sorted(found, key=lambda written: found[written])


def columns_named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the columns with one of the bare names, in the order of the names."""
    found = {}
    for place, written in enumerate(columns):
        bare = bare_name(written)
        spelled = bare.last if not bare.sections else snake(bare.rest)
        if spelled in names:
            found[written] = (names.index(spelled), bool(bare.prefix), place)
    return sorted(found, key=lambda written: found[written])


def measure_names(columns: Iterable[str], asked: str | None = None) -> dict[str, str]:
    """Return each column's name as a metric: without prefix, ``best``, ``mean`` and the like.

    A setting is no metric unless it is the one asked for. Of two columns with the same name the
    one without such words keeps it.
    """
    rests = {}
    for written in columns:
        bare = bare_name(written)
        if bare.prefix != "setting" or written == asked:
            rests[written] = bare.rest
    taken = {snake(rest) for rest in rests.values()}
    names = {}
    for written, rest in rests.items():
        plain = unqualified(rest)
        is_new = snake(plain) not in taken
        names[written] = plain if is_new else rest
        taken.add(snake(plain))
    return names


def unqualified(name: str) -> str:
    """Return a metric's name without words that only say which of its values are meant.

    ``best_eval_loss`` and ``eval/loss_mean`` become ``eval_loss``, ``accuracy_mean`` becomes
    ``accuracy``. Names that are conventional as they stand, such as ``mean_nll``, are left alone.
    """
    if split_part(name)[1] in LOSSES:
        return name
    words = snake(name).split("_")
    plain = "_".join(word for word in words if word not in QUALIFIERS)
    if split_part(plain)[1] in LOSSES:
        return plain
    without_mean = "_".join(words[:-1])
    is_mean = words[-1] in MEANS and higher_is_better(without_mean) is not None
    return without_mean if is_mean else name
