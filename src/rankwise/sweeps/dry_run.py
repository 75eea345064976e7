"""What a sweep would run and take, before it runs: the Python call behind ``rankwise sweep --dry-run``."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from rankwise.lora.alpha import parse_alpha_policy
from rankwise.store.directory import can_resume, refuse_bad_directory
from rankwise.store.records import read_evidence
from rankwise.strategies.trial_keys import count_trials
from rankwise.sweeps.config import SweepConfig, SweepSettings
from rankwise.sweeps.request_record import max_length, request_record
from rankwise.sweeps.run import (
    Progress,
    Run,
    Silent,
    make_strategy,
    open_run,
    requested,
)

MEASURED_BATCHES = 4
SMALL_RATE = 1e-5  # nothing is learned from the steps that are timed, and nothing diverges


@dataclass(frozen=True)
class PlannedRank:
    """One rank of a sweep that has not run.

    Attributes:
        rank: r.
        memory_bytes: what the plan says a training step needs, the base included; None for a model beyond it.
        train_seconds: of one trial, by the steps that were timed.
        eval_seconds: of scoring one trial on the held-out examples, likewise.
        first_rates: learning rates of the trials that run first.
    """

    rank: int
    memory_bytes: int | None
    train_seconds: float
    eval_seconds: float
    first_rates: tuple[float, ...]


@dataclass(frozen=True)
class DryRun:
    """What a sweep would do.

    Attributes:
        strategy: its name.
        complete: trials that the directory has already.
        expected: trials in all, as far as can be told before their results are known.
        at_once: trials that train together.
        ranks: one by one.
        room_bytes: memory that may be used; None for a model beyond the plan.
        batch: examples and tokens that the memory is planned for.
        seconds: training and scoring that is left, one trial after another.
        timed_steps: steps timed at the smallest and at the largest rank; ranks between are on the line through both.
    """

    strategy: str
    complete: int
    expected: int
    at_once: int
    ranks: tuple[PlannedRank, ...]
    room_bytes: int | None
    batch: tuple[int, int]
    seconds: float
    timed_steps: int

    def as_json(self) -> str:
        """Return everything as one JSON document."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def dry_run(
    config: SweepConfig | None = None,
    *,
    progress: Progress | None = None,
    **settings: Unpack[SweepSettings],
) -> DryRun:
    """Check a sweep's whole request, load its model and data, time a few steps, and leave nothing behind.

    Args:
        config: the request; or give its fields as keyword arguments.
        progress: is told what the sweep would be told before it trains.
        **settings: fields of `SweepConfig`.

    Returns:
        Trials, memory and time.

    Raises:
        RequestError: the sweep would be refused.

    Example:
        >>> import rankwise
        >>> rankwise.dry_run(ranks=[4, 8], seeds=2).expected  # doctest: +SKIP
        10
    """
    config = requested(config, settings)
    refuse_bad_directory(config.out)
    with (
        tempfile.TemporaryDirectory(prefix="rankwise-") as scratch,
        open_run(replace(config, out=Path(scratch) / "sweep"), progress or Silent()) as run,
    ):
        can_resume(config.out, request_record(config, run.task, run.base), extend=config.extend)
        evidence = read_evidence(config.out)
        strategy = make_strategy(run, run.task.chance_loss)
        first = [trial for trial in strategy.propose(evidence) if trial.truncated_from is None]
        train_seconds, eval_seconds = _time(run)
    fit = run.fit
    rows = tuple(
        PlannedRank(
            rank=rank,
            memory_bytes=fit.needed.get(rank),
            train_seconds=train_seconds[rank],
            eval_seconds=eval_seconds[rank],
            first_rates=tuple(trial.learning_rate for trial in first if trial.rank == rank),
        )
        for rank in config.ranks
    )
    complete, expected = count_trials(evidence), strategy.expected_trials(evidence)
    return DryRun(
        strategy=config.strategy,
        complete=complete,
        expected=expected,
        at_once=fit.at_once,
        ranks=rows,
        room_bytes=fit.room if fit.needed else None,
        batch=(config.batch_size, fit.length or max_length(config, run.task)),
        seconds=_seconds_left(config, rows, evidence, expected - complete),
        timed_steps=MEASURED_BATCHES,
    )


def _seconds_left(
    config: SweepConfig, rows: Sequence[PlannedRank], evidence: pd.DataFrame, left: int
) -> float:
    """Return what the trials left take: those that run first at their ranks, the others at the mean over ranks."""
    cuts = 0
    trained = list(rows)
    if config.strategy == "once":  # which trains the largest rank, and only scores the others
        cuts = (len(rows) - 1) * config.seeds - count_trials(
            evidence[evidence["rank"] != config.ranks[-1]]
        )
        trained = [rows[-1]]
    first = [row.train_seconds + row.eval_seconds for row in rows for _ in row.first_rates]
    others = max(0, left - len(first) - cuts)
    mean = float(np.mean([row.train_seconds + row.eval_seconds for row in trained]))
    return sum(first) + others * mean + cuts * rows[0].eval_seconds


def _time(run: Run) -> tuple[dict[int, float], dict[int, float]]:
    """Return each rank's seconds of training and of scoring, from a few batches at the smallest and the largest rank.

    Time is taken to grow with the tokens, which is what an engine without padding makes of it.
    """
    from rankwise.engine.trial import Trial

    config, alpha = run.config, parse_alpha_policy(run.config.lora_alpha)
    shares, parts = {}, {}
    for name in ("train", "held_out"):
        encoded, examples = run.encode(name), getattr(run.task, name)
        lengths = np.array(encoded.lengths)
        count = min(len(lengths), MEASURED_BATCHES * config.batch_size)
        rows = np.sort(np.random.default_rng(0).choice(len(lengths), count, replace=False))
        shares[name] = lengths.sum() / lengths[rows].sum()
        places = {
            example_id: row for row, example_id in enumerate(examples.ids)
        }  # of all, encoded or left out
        parts[name] = examples.take([places[encoded.ids[row]] for row in rows])
    short = replace(
        run, config=replace(config, epochs=1), task=replace(run.task, **parts), progress=Silent()
    )
    ends = (config.ranks[0], config.ranks[-1])
    measured = {}
    for rank in (ends[0], *ends):  # the first of all is slower, and measured again
        trial = Trial(
            rank=rank,
            seed=0,
            learning_rate=SMALL_RATE,
            lora_alpha=alpha.alpha(rank),
            use_rslora=alpha.use_rslora,
        )
        (finished,) = short.engine.train([trial])
        measured[rank] = (
            float(finished.train_seconds * shares["train"] * config.epochs),
            float(finished.eval_seconds * shares["held_out"]),
        )
    lines = [
        np.interp(config.ranks, ends, [measured[rank][part] for rank in ends]) for part in (0, 1)
    ]
    train_seconds, eval_seconds = (
        dict(zip(config.ranks, line.tolist(), strict=True)) for line in lines
    )
    return train_seconds, eval_seconds
