"""Steps of a trial and their learning rates, the same in both engines and in exports."""

import math
from collections.abc import Sized
from typing import TYPE_CHECKING

from rankwise.engine.config import OptimizerName, SchedulerName, TrainingConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

OPTIMIZERS: dict[OptimizerName, str] = {
    "adamw": "adamw_torch_fused",  # one kernel for each tensor
    "adamw-8bit": "adamw_bnb_8bit",
}
"""Names that transformers gives the optimizers."""
SCHEDULERS: dict[SchedulerName, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
}
"""Names that transformers gives the schedules; each has a warm-up."""


def steps_per_epoch(config: TrainingConfig, examples: Sized) -> int:
    """Return the optimizer steps of a pass over the examples; the last batch may be smaller."""
    return math.ceil(len(examples) / config.batch_size)


def total_steps(config: TrainingConfig, examples: Sized) -> int:
    """Return the optimizer steps of a trial: ``max_steps``, or those of all epochs."""
    return config.max_steps or config.epochs * steps_per_epoch(config, examples)


def warmup_steps(config: TrainingConfig, steps: int) -> int:
    """Return how many of a trial's steps the learning rate rises."""
    return math.ceil(config.warmup_ratio * steps)


def learning_rates(optimizer: "Optimizer", config: TrainingConfig, steps: int) -> "LRScheduler":
    """Return the scheduler that sets the rates of all groups of an optimizer, step by step."""
    from transformers import get_scheduler

    name = SCHEDULERS[config.lr_scheduler]
    return get_scheduler(name, optimizer, warmup_steps(config, steps), steps)
