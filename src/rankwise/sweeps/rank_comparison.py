"""The course exercise: train adapters of several ranks and compare them."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Unpack

import numpy as np
import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.errors import RequestError
from rankwise.store.records import TrialRecord, select_trials
from rankwise.sweeps.config import GridSettings, make_config
from rankwise.sweeps.progress import Progress, Silent


@dataclass(frozen=True, kw_only=True)
class RankExperiment:
    """The results of one rank: over its seeds, at its own best learning rate.

    Attributes:
        alpha: PEFT's ``lora_alpha``.
        trainable_params: adapter entries and those of the classification head.
        accuracy: mean held-out accuracy over seeds; NaN if every trial diverged.
        loss: mean held-out loss over seeds, nats per example; NaN if every trial diverged.
        training_time_seconds: time of one trial's training loop, median over seeds.
        peak_memory_bytes: largest sum of live tensors in a training step.
        learning_rate: the rank's best of those tried; NaN if every trial diverged.
        seeds: number of trials behind the means.
    """

    rank: int
    alpha: float
    trainable_params: int
    accuracy: float
    loss: float
    training_time_seconds: float
    peak_memory_bytes: int
    adapter_bytes: int
    learning_rate: float
    seeds: int


def run_rank_comparison(
    ranks: Sequence[int] | str = (4, 8, 16, 32),
    *,
    progress: Progress | None = None,
    **settings: Unpack[GridSettings],
) -> list[RankExperiment]:
    """Train adapters of every rank and return the results, ranks ascending.

    These are the trials of a sweep without its decision; `rankwise.sweep` also decides which rank
    to take.

    Args:
        ranks: one rank or more.
        progress: receives notes and finished trials.
        **settings: other fields of `SweepConfig`. Without ``out``, nothing is kept on disk.

    Raises:
        RequestError: the request was wrong; nothing was trained.

    Example:
        >>> from rankwise import run_rank_comparison
        >>> results = run_rank_comparison([4, 8], seeds=1)  # doctest: +SKIP
        >>> [(result.rank, result.accuracy) for result in results]  # doctest: +SKIP
    """
    from rankwise.sweeps.run import open_run, run_trials

    with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
        config = make_config({"out": Path(scratch) / "sweep", **settings, "ranks": ranks})
        if config.strategy != "grid" or config.budget is not None:
            raise RequestError(
                "run_rank_comparison trains every rank: use rankwise.sweep for strategy and budget"
            )
        with open_run(config, progress or Silent()) as run:
            run_trials(run)
            evidence, trials = run.store.evidence(), run.store.trials()
    return [_experiment(evidence, trials, rank) for rank in config.ranks]


def _experiment(evidence: pd.DataFrame, trials: Sequence[TrialRecord], rank: int) -> RankExperiment:
    """Return the means of a rank's trials at its own best learning rate."""
    rate = best_learning_rate(evidence[evidence["rank"] == rank])
    at_rank = select_trials(trials, rank=rank, learning_rate=rate)
    return RankExperiment(
        rank=rank,
        alpha=at_rank[0].lora_alpha,
        trainable_params=at_rank[0].trainable_params,
        accuracy=float(np.mean([trial.eval_score for trial in at_rank])),
        loss=float(np.mean([trial.eval_loss for trial in at_rank])),
        training_time_seconds=median(trial.train_seconds for trial in at_rank),
        peak_memory_bytes=max(trial.peak_memory_bytes for trial in at_rank),
        adapter_bytes=max(trial.adapter_bytes for trial in at_rank),
        learning_rate=math.nan if rate is None else rate,
        seeds=len(at_rank),
    )
