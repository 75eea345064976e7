"""The dry run of a sweep: its trials, memory and time, before anything is trained."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from rankwise.checks import check_whole
from rankwise.engine.schedule import steps_per_epoch
from rankwise.engine.trial import Engine
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.planning.planned_sweep import DryRun, PlannedRank
from rankwise.store.records import read_evidence, read_sweep
from rankwise.store.resuming import refuse_bad_directory
from rankwise.strategies.trial_keys import count_trials
from rankwise.sweeps.config import SweepConfig, SweepSettings
from rankwise.sweeps.diagnosis import MORE_STEPS, diagnosed
from rankwise.sweeps.extension import read_extension
from rankwise.sweeps.memory_fit import kept_choice
from rankwise.sweeps.progress import Progress, Silent
from rankwise.sweeps.request_record import max_length
from rankwise.sweeps.run import make_strategy, open_run, requested
from rankwise.sweeps.run_context import Run
from rankwise.sweeps.user_trainer import first_commands
from rankwise.tasks.base import Examples
from rankwise.tasks.preview import show_examples

TIMED_BATCHES = 4
TIMED_RATE = 1e-5  # so low that the timed steps neither learn nor diverge


def dry_run(
    config: SweepConfig | None = None,
    *,
    progress: Progress | None = None,
    show: int = 0,
    **settings: Unpack[SweepSettings],
) -> DryRun:
    """Check a sweep's whole request, load its model and data, time a few steps, and write nothing.

    Args:
        config: the request; alternatively, give its fields as keyword arguments.
        progress: receives the notes that the sweep would give before it trains.
        show: number of training examples to return as the model will see them.
        **settings: fields of `SweepConfig`.

    Raises:
        RequestError: the sweep would be refused.

    Example:
        >>> import rankwise
        >>> rankwise.dry_run(ranks=[4, 8], seeds=2).expected  # doctest: +SKIP
        10
        >>> print(rankwise.dry_run(data="chats.jsonl", show=1).examples[0])  # doctest: +SKIP
        row 1: 12 tokens, 4 learnt
        <|im_start|>user
        Hello<|im_end|>
        <|im_start|>assistant
        «Hi there<|im_end|>»
    """
    show = check_whole("show", show, at_least=0)
    config = requested(config, settings)
    refuse_bad_directory(config.out)
    config, extension = read_extension(config)
    with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
        scratch_config = replace(config, out=Path(scratch) / "sweep")
        with open_run(scratch_config, progress or Silent()) as run:
            extends_request = config.extend and extension is None
            record = read_sweep(scratch_config.out)
            assert record is not None  # the open run has written it
            fit = kept_choice(run.fit, config.out, record, extend=extends_request)
            whole = replace(run, extension=extension, fit=fit)
            planned = _plan(whole, read_evidence(config.out), config.out)
            if config.diagnose and not diagnosed(config.out):
                planned = _with_further_trial(planned)
            if run.base is None:
                return planned
            examples = show_examples(run.task, run.base.tokenizer, run.max_length, show)
            return replace(planned, examples=examples)


def _plan(run: Run, evidence: pd.DataFrame, out: Path) -> DryRun:
    """Return the plan of an open sweep.

    Args:
        run: the sweep, in a directory that will be deleted.
        evidence: evidence of the trials already complete.
        out: the directory that the sweep will have.
    """
    from rankwise.engine.fused.engine import FusedEngine
    from rankwise.models.device import precision_name

    config, fit, in_force = run.config, run.fit, run.in_force
    strategy = make_strategy(run, run.task.chance_loss)
    first = [trial for trial in strategy.propose(evidence) if trial.truncated_from is None]
    times: list[tuple[float, float]] = []
    tokens_per_second, tflops = None, None
    at_once, is_fused = fit.at_once, False
    if config.trainer is None:
        times, (tokens_per_second, tflops), engine = _time_ranks(run)
        # The sweep's choice, unless that engine does not take the model.
        at_once, is_fused = engine.pack_size, isinstance(engine, FusedEngine)
    ranks = []
    for place, rank in enumerate(config.ranks):
        rates = tuple(trial.learning_rate for trial in first if trial.rank == rank)
        training, scoring = times[place] if times else (None, None)
        ranks.append(PlannedRank(rank, fit.needed.get(rank), training, scoring, rates))
    complete, expected = count_trials(evidence), strategy.expected_trials(evidence)
    seconds = None
    if times:
        counts = [len(row.first_rates) for row in ranks]
        seconds = _seconds_left(config, times, counts, evidence, expected - complete)
    return DryRun(
        strategy=config.strategy,
        complete=complete,
        expected=expected,
        at_once=at_once,
        device="unknown" if run.base is None else str(run.base.device),
        precision=config.precision if run.base is None else precision_name(run.base.compute_dtype),
        micro_batch_tokens=in_force.micro_batch_tokens,
        gradient_checkpointing=in_force.gradient_checkpointing == "on",
        ranks=tuple(ranks),
        room_bytes=fit.room if fit.needed else None,
        batch=(config.batch_size, fit.length or max_length(config, run.task)),
        seconds=seconds,
        timed_steps=TIMED_BATCHES if times else 0,
        commands=() if times else first_commands(config, out, first),
        tokens_per_second=tokens_per_second,
        tflops=tflops,
        is_fused=is_fused,
    )


def _with_further_trial(planned: DryRun) -> DryRun:
    """Add the trial of ``--diagnose``: twice the training time of an average rank."""
    training = float(np.mean([row.train_seconds or 0.0 for row in planned.ranks]))
    scoring = float(np.mean([row.eval_seconds or 0.0 for row in planned.ranks]))
    return replace(
        planned,
        expected=planned.expected + 1,
        seconds=(planned.seconds or 0.0) + MORE_STEPS * training + scoring,
        further=1,
    )


def _seconds_left(
    config: SweepConfig,
    times: Sequence[tuple[float, float]],
    first: Sequence[int],
    evidence: pd.DataFrame,
    trials_left: int,
) -> float:
    """Return the time of the remaining trials.

    Those that run first take the time of their ranks, the others the mean time over ranks.

    Args:
        config: the request.
        times: seconds of training and of scoring a trial of each rank.
        first: number of trials of each rank that run first.
        evidence: evidence of the complete trials.
        trials_left: number of the remaining trials.
    """
    truncations = 0
    trained = list(times)
    if config.strategy == "once":  # it trains the largest rank and only scores the others
        done = count_trials(evidence[evidence["rank"] != config.ranks[-1]])
        truncations = (len(times) - 1) * config.seeds - done
        trained = [times[-1]]
    others = max(0, trials_left - sum(first) - truncations)
    of_first = sum(count * sum(seconds) for count, seconds in zip(first, times, strict=True))
    mean = float(np.mean([sum(seconds) for seconds in trained]))
    return of_first + others * mean + truncations * times[0][1]


def _time_ranks(run: Run) -> tuple[list[tuple[float, float]], tuple[float, float], Engine]:
    """Return the seconds of training and of scoring one trial of each rank, `_speed`, the engine.

    A few batches are timed at the smallest and at the largest rank. Time is taken to grow in
    proportion to the tokens, as it does in an engine without padding.
    """
    config = run.config
    epochs: float = config.epochs
    if config.max_steps is not None:
        epochs = config.max_steps / steps_per_epoch(config, run.task.train)
    train, train_factor = _sample(run, "train")
    held_out, held_out_factor = _sample(run, "held_out")
    task = replace(run.task, train=train, held_out=held_out)
    sampled = replace(
        run, config=replace(config, epochs=1, max_steps=None), task=task, progress=Silent()
    )
    low, high = config.ranks[0], config.ranks[-1]
    measured = {}
    # The first steps of a process, and of a rank, are slower: one engine warms up. It keeps what it
    # measured of a rank, so another one measures.
    for each in (replace(sampled), replace(sampled)):
        for rank in (low, high):
            measured[rank] = _time_trial(each, rank)
    speed = _speed(sampled, measured[high][0])
    seconds = np.array([measured[low], measured[high]])  # (2, 2): ranks, training and scoring
    seconds *= (train_factor * epochs, held_out_factor)
    training, scoring = (np.interp(config.ranks, (low, high), part) for part in seconds.T)
    seconds_by_rank = list(zip(training.tolist(), scoring.tolist(), strict=True))
    return seconds_by_rank, speed, each.engine.engine


def _speed(run: Run, seconds: float) -> tuple[float, float]:
    """Return tokens per second and useful TFLOP/s of training a trial of the largest rank."""
    from rankwise.planning.flop import training_work

    train, base = run.encode("train"), run.loaded_base
    work = training_work(base.model, run.task.objective.task_type)
    adapter = run.config.ranks[-1] * sum(map(sum, base.targets.values()))
    flop = work.flop(train.lengths, train.loss_count, adapter)
    return sum(train.lengths) / seconds, flop / seconds / 1e12


def _sample(run: Run, part: str) -> tuple[Examples, float]:
    """Return a few batches of a part of the data, and its tokens divided by theirs."""
    encoded, examples = run.encode(part), getattr(run.task, part)
    lengths = np.array(encoded.lengths)  # (N,)
    count = min(len(lengths), TIMED_BATCHES * run.config.batch_size)
    rows = np.sort(np.random.default_rng(0).choice(len(lengths), count, replace=False))
    # Examples without a token to learn are not encoded, so rows differ from those of the data.
    row_of = {example_id: row for row, example_id in enumerate(examples.ids)}
    taken = examples.take([row_of[encoded.ids[row]] for row in rows])
    return taken, float(lengths.sum() / lengths[rows].sum())


def _time_trial(run: Run, rank: int) -> tuple[float, float]:
    """Train and score one trial; return the seconds of both."""
    from rankwise.engine.trial import Trial

    alpha = parse_alpha_policy(run.config.lora_alpha)
    trial = Trial(
        rank=rank,
        seed=0,
        learning_rate=TIMED_RATE,
        lora_alpha=alpha.alpha(rank),
        use_rslora=alpha.use_rslora,
    )
    (finished,) = run.engine.train([trial])
    return float(finished.train_seconds), float(finished.eval_seconds)
