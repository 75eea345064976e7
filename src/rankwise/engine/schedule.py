"""Steps of a trial and their learning rates, the same in both engines and in exports."""

import math
from collections.abc import Callable, Sized

from rankwise.engine.config import OptimizerName, SchedulerName, TrainingConfig
from rankwise.engine.trial import Trial

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


def trial_steps(config: TrainingConfig, trial: Trial, examples: Sized) -> int:
    """Return the optimizer steps of one trial, which may be a share of all; at least one."""
    steps = total_steps(config, examples)
    return steps if trial.share_of_steps is None else math.ceil(trial.share_of_steps * steps)


def warmup_steps(config: TrainingConfig, steps: int) -> int:
    """Return how many of a trial's steps the learning rate rises."""
    return math.ceil(config.warmup_ratio * steps)


def rate_factors(config: TrainingConfig, steps: int) -> Callable[[int], float]:
    """Return the function that gives a step's learning rate as a share of the highest.

    Steps count from 0.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # a schedule is asked for with one
    name = SCHEDULERS[config.lr_scheduler]
    schedule = get_scheduler(name, optimizer, warmup_steps(config, steps), steps)
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
