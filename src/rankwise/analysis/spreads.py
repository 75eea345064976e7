"""Means with a spread: the standard deviation or error of each mean, and its number of seeds.

A table of published means says as much as the single seeds do: under a normal model, the mean, the
standard deviation and their number are all that a comparison of unpaired results uses. So n
stand-ins with exactly that mean and standard deviation take the place of the n seeds. Each rank
has seeds of its own, so nothing is paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankwise.analysis.cells import Numbers
from rankwise.analysis.config import Reading
from rankwise.analysis.names import MEANS, bare_name
from rankwise.decide.metrics import snake
from rankwise.errors import RequestError, shown

DEVIATIONS = {"std", "sd", "stdev", "stddev", "deviation"}
ERRORS = {"stderr", "se", "sem"}
FILLERS = {"over", "across", "seed", "seeds", "runs", "standard", "dev", "error", "err"}
SEED_COUNTS = (
    "n_seeds", "num_seeds", "n_seed", "number_of_seeds", "seed_count", "seeds", "nseeds", "n_runs",
    "num_runs", "number_of_runs", "runs", "n_repeats", "repeats", "replicates",
)  # fmt: skip
COUNTS = ("n", "count", "num", "size")


@dataclass(frozen=True)
class Spread:
    """The spread of a metric's means.

    Attributes:
        values: of each row, (rows,).
        written: the column's name, or a cell such as "54.0 ± 0.4".
        is_error: whether it is the standard error of a mean, not the standard deviation.
        must_be_explained: whether a reading without it would ignore what the table says.
        over_seeds: whether the column's name says that it is over seeds.
    """

    values: np.ndarray
    written: str
    is_error: bool = False
    must_be_explained: bool = True
    over_seeds: bool = False


@dataclass(frozen=True)
class Means:
    """Rows of means, as they count.

    Attributes:
        rows: the rows; with stand-ins for the seeds where their number is known.
        metrics: those that the rows still have, by their written names.
        noise: standard deviation of one row of each metric, where the number is not known.
        notes: one line on what was done.
    """

    rows: pd.DataFrame
    metrics: Mapping[str, str]
    noise: Mapping[str, float]
    notes: tuple[str, ...] = ()


def read_means(
    rows: pd.DataFrame,
    metrics: Mapping[str, str],
    numbers: Mapping[str, Numbers],
    reading: Reading,
    origin: str,
) -> Means:
    """Take the spreads of a table's means into account.

    Args:
        rows: one row for each result, with a column for each metric by its short name.
        metrics: short names by written ones.
        numbers: all columns of numbers of the table, by their written names.
        reading: what the user said about the spread.
        origin: name of the table.

    Raises:
        RequestError: it is not said whether the spread is over seeds.
    """
    spreads = {
        metric: spread
        for written, metric in metrics.items()
        if (spread := _find_spread(written, metrics, numbers)) is not None
    }
    plain = Means(rows, metrics, {})
    first = next(iter(spreads.values()), None)
    if first is None:
        if reading.seeds_per_mean is None and reading.spread is None:
            return plain
        return Means(rows, metrics, {}, (f"{origin}: no spread of means was found; none is used",))
    reason = _reason_against(rows, reading)
    if reason is not None:
        return Means(rows, metrics, {}, (f"{origin}: {first.written!r} is not used: {reason}",))
    count, says_seeds = _find_count(numbers, metrics)
    is_said = reading.spread == "seeds" or reading.seeds_per_mean is not None
    if not (is_said or says_seeds or first.over_seeds):
        return _unexplained(first, plain, origin)
    if reading.seeds_per_mean is not None:
        count = np.full(len(rows), float(reading.seeds_per_mean))
    if count is None:
        return _as_noise(rows, metrics, spreads, origin)
    return _as_seeds(rows, metrics, spreads, count, origin)


def stand_ins(mean: float, deviation: float, count: int) -> np.ndarray:
    """Return numbers with this mean and standard deviation (with n - 1 in its denominator)."""
    if count < 2:
        return np.array([mean])
    steps = np.linspace(-1, 1, count)
    return mean + deviation * steps / steps.std(ddof=1)


def _find_spread(
    written: str, metrics: Mapping[str, str], numbers: Mapping[str, Numbers]
) -> Spread | None:
    """Return the spread of a metric: in its own cells, or in a column with its name."""
    own = numbers[written]
    if own.has_spread:
        place = int(np.isfinite(own.spreads).argmax())
        return Spread(own.spreads, f"{own.values[place]:g} ± {own.spreads[place]:g}")
    mine = _words(written) - set(MEANS)
    for name, column in numbers.items():
        words = _words(name)
        kinds = (DEVIATIONS | ERRORS) & words
        is_error = bool(words & ERRORS or (words - mine) & {"error", "err"})
        about = words - DEVIATIONS - ERRORS - FILLERS
        belongs = about == mine - FILLERS or (not about and len(metrics) == 1)
        if kinds and belongs and name != written:
            over_seeds = bool(words & {"seed", "seeds", "runs"})
            return Spread(column.values, name, is_error, not is_error, over_seeds)
    return None


def _find_count(
    numbers: Mapping[str, Numbers], metrics: Mapping[str, str]
) -> tuple[np.ndarray | None, bool]:
    """Return the number of seeds of each row, and whether its column's name says seeds."""
    metric_words = set[str]().union(*(_words(written) for written in metrics)) - set(MEANS)
    for names in (SEED_COUNTS, COUNTS):
        for name, column in numbers.items():
            bare = bare_name(name)
            if bare.prefix == "setting":
                continue
            rest = "_".join(
                word for word in snake(bare.rest).split("_") if word not in metric_words
            )
            whole = np.isfinite(column.values) & (column.values >= 1)
            if rest in names and whole.all() and (np.floor(column.values) == column.values).all():
                return column.values, names is SEED_COUNTS
    return None, False


def _reason_against(rows: pd.DataFrame, reading: Reading) -> str | None:
    """Return why the spread is not needed; None if it is."""
    if reading.spread == "examples":
        return "it is over examples, which all ranks share"
    if reading.noise_is_stated:
        return "the noise is stated"
    is_said = reading.spread is not None or reading.seeds_per_mean is not None
    if not is_said and "seed" in rows and rows["seed"].nunique() > 1:
        return "each row is a single seed"
    return None


def _unexplained(spread: Spread, plain: Means, origin: str) -> Means:
    """Ask what the spread is over, or note that it is left out."""
    advice = (
        "if it is over seeds, say over how many with --seeds-per-mean (seeds_per_mean), or, where "
        "that is not known, --spread seeds (spread); if over examples, --spread examples"
    )
    if spread.must_be_explained:
        shape = f"{origin}: {shown(spread.written)} is a spread, and nothing says what it is over"
        raise RequestError(f"{shape}; {advice}")
    note = f"{origin}: {spread.written!r} is not used: nothing says what it is over; {advice}"
    return Means(plain.rows, plain.metrics, {}, (note,))


def _as_noise(
    rows: pd.DataFrame, metrics: Mapping[str, str], spreads: Mapping[str, Spread], origin: str
) -> Means:
    noise = {}
    for metric, spread in spreads.items():
        known = spread.values[np.isfinite(spread.values)]
        noise[metric] = float(np.sqrt((known**2).mean()))
    stated = ", ".join(f"{value:.4g} for {metric}" for metric, value in noise.items())
    note = (
        f"{origin}: the spread is taken as the noise of one trial ({stated}), and each mean as one "
        "trial, because the number of seeds is not known; --seeds-per-mean says it"
    )
    return Means(rows, metrics, noise, (note,))


def _as_seeds(
    rows: pd.DataFrame,
    metrics: Mapping[str, str],
    spreads: Mapping[str, Spread],
    count: np.ndarray,
    origin: str,
) -> Means:
    """Replace each row by as many stand-ins as it has seeds."""
    counts = count.astype(int)
    repeated = rows.loc[rows.index.repeat(counts)].copy()
    for metric, spread in spreads.items():
        deviations = spread.values * (np.sqrt(counts) if spread.is_error else 1.0)
        missing = ~np.isfinite(deviations) & (counts > 1)
        if missing.any():
            row = rows.index[missing][0]
            raise RequestError(f"{origin}: {spread.written!r} is missing in row {row}; fill it in")
        triples = zip(rows[metric].astype(float), deviations, counts, strict=True)
        repeated[metric] = np.concatenate([stand_ins(*each) for each in triples])
    repeated["seed"] = range(len(repeated))
    unknown = [metric for metric in metrics.values() if metric not in spreads]
    used = ", ".join(repr(spread.written) for spread in spreads.values())
    seeds = (
        f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    )
    note = (
        f"{origin}: each mean counts with its spread ({used}) over {seeds} seeds: as many "
        "stand-ins with that mean and standard deviation, unpaired, are the evidence"
    )
    if unknown:
        note += f"; left out {', '.join(unknown)}, whose spread is not known"
    kept = {written: metric for written, metric in metrics.items() if metric in spreads}
    return Means(repeated.drop(columns=unknown), kept, {}, (note,))


def _words(name: str) -> set[str]:
    return set(snake(bare_name(name).rest).split("_"))
