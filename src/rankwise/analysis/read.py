"""Other people's sweeps as evidence: found by what is there, read, put together and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.analysis.join import (
    KEY,
    UNKNOWN,
    common_metrics,
    differences,
    join_evidence,
    refuse_repeats,
)
from rankwise.analysis.peft_comparison import is_comparison, read_comparison
from rankwise.analysis.run_logs import CONFIGS, DEPTH, read_run_directories
from rankwise.analysis.source import ResultsSource, read_object
from rankwise.analysis.tables import read_result_table
from rankwise.decide.evidence import ChanceLoss, as_numbers
from rankwise.decide.explain import PLAIN, Wording, wording_of
from rankwise.decide.metrics import snake
from rankwise.errors import RankwiseError, RequestError, some
from rankwise.store.records import (
    EVIDENCE_COLUMNS,
    TrialRecord,
    read_chance_loss,
    read_evidence,
    read_sweep,
    read_train_losses,
    read_trials,
)
from rankwise.tasks.readers import FORMATS


@dataclass(frozen=True)
class ImportedResults:
    """Others' results as evidence.

    Attributes:
        evidence: a row per (rank, seed, learning_rate) or, where results are per example, per (rank, seed,
            learning_rate, example_id). Columns: ``rank`` and ``seed`` (int; seed 0 where none is known),
            ``learning_rate`` (float; 0.0 where none is known), ``example_id`` (int or str; only where results are
            per example), ``diverged`` (bool) and a float column per metric, finite except in rows that diverged.
            The held-out loss, whatever it was called, is ``loss``; other metrics keep their name in lower case
            without the part of the data (``eval_accuracy`` is ``accuracy``).
        metrics: names of the metric columns: the one asked for first, then the held-out loss where there is one;
            ``train_loss``, which is not held out, last.
        train_loss: columns ``rank``, ``seed``, ``learning_rate``, ``step`` and ``train_loss`` (finite) where
            histories are known, else None.
        trials: trials of the rankwise sweeps among the results; empty where there are none.
        notes: what was guessed or left out, to be said aloud.
        chance_loss: the held-out loss that says nothing is learnt, of a single sweep that knows it.
        wording: how sentences speak of the loss.
    """

    evidence: pd.DataFrame
    metrics: tuple[str, ...]
    train_loss: pd.DataFrame | None
    trials: tuple[TrialRecord, ...]
    notes: tuple[str, ...]
    chance_loss: ChanceLoss | None
    wording: Wording


def read_results(
    paths: Sequence[Path],
    *,
    rank_column: str | None = None,
    metric: str | None = None,
    seed_column: str | None = None,
    learning_rate_column: str | None = None,
    example_column: str | None = None,
) -> ImportedResults:
    """Read results that others produced.

    Each path is one of: a rankwise sweep directory; a table (CSV, TSV, JSON lines, Parquet); a directory of training
    runs, or one run (see `rankwise.analysis.run_logs`); a result file of PEFT's method comparison or a directory of
    them (see `rankwise.analysis.peft_comparison`). Results of several paths are put together.

    Args:
        paths: files and directories.
        rank_column: the tables' column of ranks; by default the one with a conventional name, and so for the others.
        metric: a metric to look for, beside those known by name; it comes first in ``metrics``.
        seed_column: the tables' column of seeds.
        learning_rate_column: the tables' column of learning rates.
        example_column: the tables' column of held-out examples' ids.

    Raises:
        RequestError: a path cannot be read or holds no results, there is no such column or metric, a rank is not a
            positive whole number, a metric is not finite in a row that did not diverge, or results stand twice.
    """
    columns = {
        "rank": rank_column, "seed": seed_column, "learning_rate": learning_rate_column, "example": example_column,
    }  # fmt: skip
    if not paths:
        raise RequestError("no results were named; allowed are files and directories")
    parts: list[ResultsSource] = []
    notes: list[str] = []
    for path in paths:
        found, said = _read_path(Path(path), columns, metric)
        if not found:
            raise RequestError(f"{str(path)!r} holds no results: {'; '.join(said)}")
        parts += found
        notes += said
    for part in parts:
        notes += part.notes
    given = [f"{role}_column" for role, column in columns.items() if column is not None]
    if given and all(path.is_dir() or path.suffix.lower() == ".json" for path in map(Path, paths)):
        raise RequestError(
            f"{given[0]} is for tables, and {some(map(str, paths))} holds none; leave it out"
        )
    metrics = common_metrics(parts, metric, notes)
    evidence = join_evidence(parts, metrics, notes)
    refuse_repeats(parts, evidence)
    notes += _cautions(parts)
    evidence = evidence.reset_index(drop=True)
    trials = tuple(trial for part in parts for trial in part.trials)
    chance_loss, wording = (
        (parts[0].chance_loss, parts[0].wording) if len(parts) == 1 else (None, PLAIN)
    )
    return ImportedResults(
        evidence,
        tuple(metrics),
        _histories(parts),
        trials,
        tuple(dict.fromkeys(notes)),
        chance_loss,
        wording,
    )


def _read_path(
    path: Path, columns: dict[str, str | None], metric: str | None
) -> tuple[list[ResultsSource], list[str]]:
    """Return the parts at a path, and notes on what was left out; no parts if nothing could be used."""
    if path.is_file() and path.suffix.lower() == ".json":
        content = read_object(path)
        if not is_comparison(content):
            raise RequestError(
                f"{str(path)!r} is not a result of PEFT's method comparison (it has no run_info and train_info); "
                f"allowed are those and tables that end in {', '.join(FORMATS)}"
            )
        return _sort_out([(path.name, read_comparison(path, content, metric))])
    if not path.is_dir():
        return [read_result_table(path, columns, metric)], []
    if (path / "sweep.json").is_file() and (path / "trials").is_dir():
        return [_read_sweep(path)], []
    try:
        parts, notes = read_run_directories(path, metric)
        contents = (
            [(file, read_object(file)) for file in sorted(path.glob("*.json"))] if not parts else []
        )
    except OSError as error:
        raise RequestError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    compared = [
        (file.name, read_comparison(file, content, metric))
        for file, content in contents
        if is_comparison(content)
    ]
    if compared:
        return _sort_out(compared)
    if not parts and not notes:
        raise RequestError(
            f"{str(path)!r} holds no results; allowed are a rankwise sweep (sweep.json), runs at most {DEPTH} "
            f"directories down ({' or '.join(CONFIGS[:2])} with metrics.jsonl or trainer_state.json), and results of "
            "PEFT's method comparison; name a table itself"
        )
    return parts, notes


def _sort_out(read: list[tuple[str, ResultsSource | str]]) -> tuple[list[ResultsSource], list[str]]:
    parts = [part for _, part in read if isinstance(part, ResultsSource)]
    return parts, [
        f"{name} is left out: {reason}" for name, reason in read if isinstance(reason, str)
    ]


def _read_sweep(directory: Path) -> ResultsSource:
    """Read a rankwise sweep's evidence and its trials' training losses and costs."""
    try:
        rows, trials = read_evidence(directory), read_trials(directory)
        train_loss = read_train_losses(directory)
    except (OSError, ValueError, RankwiseError) as error:
        raise RequestError(
            f"sweep {str(directory)!r} cannot be read: {' '.join(str(error).split())}"
        ) from None
    missing = [name for name in EVIDENCE_COLUMNS if name not in rows.columns]
    if missing:
        raise RequestError(
            f"sweep {str(directory)!r}: its evidence lacks the column {some(missing)}"
        )
    if rows.empty:
        raise RequestError(f"sweep {str(directory)!r} has no complete trial yet; run it first")
    sweep = read_sweep(directory)
    assert sweep is not None  # its file is what makes the directory a sweep
    score = snake(sweep.task.score)
    return ResultsSource(
        origin=str(directory),
        rows=rows.rename(columns={"score": score}).set_axis(range(1, len(rows) + 1)),
        names={"loss": "loss", "score": score},
        train_loss=None if train_loss.empty else train_loss,
        trials=tuple(trials),
        chance_loss=read_chance_loss(directory),
        wording=wording_of(sweep.task.loss, sweep.task.chance),
    )


def _cautions(parts: list[ResultsSource]) -> list[str]:
    """Say what limits a comparison of results."""
    cautions = []
    for own in dict.fromkeys(own for part in parts for own in part.names.values()):
        written = dict.fromkeys(
            name for part in parts for name, metric in part.names.items() if metric == own
        )
        if len(written) > 1:
            cautions.append(
                f"{own} is called {some(map(repr, written))}; they compare if the held-out data are the same"
            )
    steps = [part.step for part in parts if part.step is not None]
    if steps:
        reached = (
            f"step {steps[0]}"
            if min(steps) == max(steps)
            else f"steps {min(steps)} to {max(steps)}, not the same"
        )
        cautions.append(f"of each run the last evaluation counts ({reached})")
    if differ := differences(parts):
        cautions.append(f"the runs differ in more than their rank: {some(differ)}")
    return cautions


def _histories(parts: list[ResultsSource]) -> pd.DataFrame | None:
    frames = [part.train_loss for part in parts if part.train_loss is not None]
    if not frames:
        return None
    known = pd.concat(frames, ignore_index=True).reindex(columns=[*KEY[:3], "step", "train_loss"])
    known = known[np.isfinite(as_numbers(known["train_loss"]))].fillna(UNKNOWN)
    kinds = {
        "rank": np.int64,
        "seed": np.int64,
        "learning_rate": float,
        "step": np.int64,
        "train_loss": float,
    }
    known = pd.DataFrame(
        {name: as_numbers(known[name]).astype(kind) for name, kind in kinds.items()}
    )
    return None if known.empty else known
