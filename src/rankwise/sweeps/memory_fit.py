"""The memory of a sweep's trials: which ranks fit this machine, and how many trials at once."""

from typing import TYPE_CHECKING

from rankwise.models.files import load_arguments
from rankwise.planning.config import PlanConfig
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.request_record import max_length, model_name
from rankwise.tasks.base import Task

if TYPE_CHECKING:
    from rankwise.planning.machine_fit import Fit


def fit_to_machine(config: SweepConfig, task: Task) -> "Fit":
    """Return how the trials of a sweep fit the memory of this machine, see `how_many_fit`.

    Raises:
        RequestError: a rank does not fit.
    """
    from rankwise.planning.machine_fit import how_many_fit, this_machine

    return how_many_fit(
        plan_config(config, task),
        lambda: longest_text(config, task),
        config.max_memory,
        this_machine(config.device),
    )


def plan_config(config: SweepConfig, task: Task) -> PlanConfig:
    """Return the plan's request for one trial of a sweep, padded to the longest length allowed."""
    return PlanConfig(
        model=model_name(config),
        ranks=config.ranks,
        batch_size=config.batch_size,
        seq_len=max_length(config, task),
        precision="fp32",
        quantization=config.quantization,
        use_dora=config.use_dora,
        target_modules=config.target_modules,
        task_type=task.objective.task_type,  # type: ignore[arg-type]
        num_labels=task.objective.settings.get("num_labels"),
        trust_remote_code=config.trust_remote_code,
    )


def longest_text(config: SweepConfig, task: Task) -> int:
    """Return the number of tokens of the longest training example."""
    from transformers import AutoTokenizer

    place, options = load_arguments(model_name(config))
    tokenizer = AutoTokenizer.from_pretrained(
        place, **options, trust_remote_code=config.trust_remote_code
    )
    encoded, _ = task.encoder(task.train, tokenizer, max_length(config, task))
    return max(encoded.lengths)
