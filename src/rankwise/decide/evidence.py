"""Evidence as arrays: checked, each rank at the learning rate that it is judged by."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankwise.errors import RequestError, some

REQUIRED = ("rank", "seed", "example_id", "loss", "score")


@dataclass(frozen=True)
class Runs:
    """A rank's trials at its learning rate.

    Attributes:
        rank: the rank.
        learning_rate: the rate it is judged by; None if every rate diverged.
        rates: all rates tried, ascending.
        seeds: of the trials, ascending, (S,).
        examples: ids of the held-out examples, sorted, (N,).
        loss: nats, (S, N).
        score: (S, N).
        diverged: trials whose loss was not finite, at any rate.
    """

    rank: int
    learning_rate: float | None
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    examples: np.ndarray
    loss: np.ndarray
    score: np.ndarray
    diverged: int


def read_runs(evidence: pd.DataFrame) -> list[Runs]:
    """Turn a table of evidence into arrays, ranks ascending; see `rankwise.select` for the columns.

    Raises:
        RequestError: a column is missing, there is one rank only, a loss is not finite, a row stands twice, or ranks
            were not scored on the same examples.
    """
    evidence = _checked(evidence)
    runs = [_runs_of(int(rank), evidence[evidence["rank"] == rank]) for rank in sorted(evidence["rank"].unique())]
    alive = [run for run in runs if run.seeds]
    for run in alive[1:]:
        if not np.array_equal(run.examples, alive[0].examples):
            raise RequestError(f"evidence: ranks {alive[0].rank} and {run.rank} were not scored on the same examples")
    return runs


def best_learning_rate(evidence: pd.DataFrame) -> float | None:
    """Return the rate to judge a rank by: the smallest that cannot be told from the best, None if all diverged.

    The best has the lowest mean loss; a smaller rate whose loss is within one standard error of it (paired over
    examples) is preferred, because the best of one seed often lies next to rates at which another seed collapses.
    That is the one-standard-error rule (Breiman et al. 1984, section 3.4.3), applied to every rank alike.

    Rates are compared on the seeds that every rate has been tried with, so that a rate run with more seeds is
    neither favoured nor punished for them. A rate with a diverged trial is out.

    Args:
        evidence: rows of one rank, with ``learning_rate``, ``seed``, ``example_id``, ``loss`` and ``diverged``.
    """
    gone = evidence.loc[evidence["diverged"], "learning_rate"].unique()
    usable = evidence[~evidence["learning_rate"].isin(gone)]
    rates = sorted(float(rate) for rate in usable["learning_rate"].unique())
    if len(rates) < 2:
        return rates[0] if rates else None
    shared = set.intersection(*(set(seeds) for seeds in usable.groupby("learning_rate")["seed"].unique()))
    if shared:
        usable = usable[usable["seed"].isin(shared)]
    losses = usable.pivot_table(index="example_id", columns="learning_rate", values="loss").to_numpy()  # (N, L)
    behind = losses - losses[:, [losses.mean(0).argmin()]]  # (N, L), of means over seeds
    # The standard error of a single example is not a number; nothing is near then but the best itself.
    error = behind.std(0, ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else np.zeros(len(rates))
    return rates[int((behind.mean(0) <= error).argmax())]  # the first, true for the best


def _checked(evidence: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in REQUIRED if name not in evidence.columns]
    if missing:
        raise RequestError(f"evidence lacks the column {some(missing)}; it has: {some(evidence.columns, 12)}")
    evidence = evidence.copy()
    evidence["diverged"] = evidence["diverged"].astype(bool) if "diverged" in evidence.columns else False
    if "learning_rate" not in evidence.columns:
        evidence["learning_rate"] = 0.0  # one rate, not named
    if evidence["rank"].nunique() < 2:
        raise RequestError(f"evidence holds {evidence['rank'].nunique()} rank; at least two are needed to compare")
    usable = evidence[~evidence["diverged"]]
    bad = usable.index[~np.isfinite(usable[["loss", "score"]].to_numpy(dtype=float)).all(axis=1)]
    if len(bad):
        raise RequestError(f"evidence: loss or score is not finite in {len(bad)} rows (row {some(bad)})")
    key = ["rank", "learning_rate", "seed", "example_id"]
    twice = usable.index[usable.duplicated(key)]
    if len(twice):
        raise RequestError(f"evidence: {len(twice)} rows repeat a {', '.join(key)} (row {some(twice)})")
    return evidence


def _runs_of(rank: int, evidence: pd.DataFrame) -> Runs:
    rates = tuple(sorted(float(rate) for rate in evidence["learning_rate"].unique()))
    diverged = int(evidence.loc[evidence["diverged"]].groupby(["learning_rate", "seed"]).ngroups)
    rate = best_learning_rate(evidence)
    if rate is None:
        return Runs(rank, None, rates, (), np.empty(0), np.empty((0, 0)), np.empty((0, 0)), diverged)
    chosen = evidence[evidence["learning_rate"] == rate]
    seeds, row = np.unique(chosen["seed"].to_numpy(), return_inverse=True)  # (S,), (cells,)
    examples, column = np.unique(chosen["example_id"].to_numpy(), return_inverse=True)  # (N,), (cells,)
    loss, score = np.full((2, len(seeds), len(examples)), np.nan)  # (S, N) each
    loss[row, column], score[row, column] = chosen["loss"], chosen["score"]
    if np.isnan(loss).any():
        raise RequestError(f"evidence of rank {rank}: its seeds were not scored on the same examples")
    return Runs(rank, rate, rates, tuple(int(seed) for seed in seeds), examples, loss, score, diverged)
