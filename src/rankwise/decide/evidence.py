"""Evidence as arrays: checked, each rank at the learning rate that it is judged by."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankwise.checks import check_flag, check_text
from rankwise.decide.columns import typed
from rankwise.decide.metrics import higher_is_better as by_name
from rankwise.errors import RequestError, nearest, shown, some

KEY = ["rank", "learning_rate", "seed", "example_id"]
ChanceLoss = float | pd.Series
"""Held-out loss that says nothing is learnt, nats: its mean, or each example's, indexed by ``example_id``."""
LEAST_GAIN = 1e-4  # share of that loss that has to be gained: less may be rounding, and is nothing to compare ranks by


@dataclass(frozen=True)
class RankResults:
    """A rank's trials at its learning rate.

    Attributes:
        rank: the rank.
        learning_rate: the rate it is judged by; None if every rate diverged.
        rates: all rates tried, ascending.
        seeds: of the trials, ascending, (S,).
        examples: ids of the held-out examples, sorted, (N,); a single one where results are aggregates.
        cost: what is compared, smaller is better: the loss in nats, or another metric with its sign, (S, N).
        loss: nats, (S, N), where there are losses.
        score: larger is better or not, as the metric has it, (S, N), where there are scores.
        diverged: trials whose loss was not finite, at any rate.
    """

    rank: int
    learning_rate: float | None
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    examples: np.ndarray
    cost: np.ndarray
    loss: np.ndarray | None
    score: np.ndarray | None
    diverged: int


def read_rank_results(
    evidence: pd.DataFrame,
    metric: str = "loss",
    higher_is_better: bool | None = None,
    trained_at: int | None = None,
) -> list[RankResults]:
    """Turn a table of evidence into arrays, ranks ascending; see `rankwise.select` for the columns.

    Where the smaller ranks are cuts, only those count that are cut at the rate that the trained rank is judged by: with
    others rates would be compared, not ranks.

    Raises:
        RequestError: a column is missing, a value is not what its column holds (a positive whole number for a rank, a
            finite number for a metric, true or false for ``diverged``), a row stands twice, ranks or their rates were
            not scored on the same examples, or it is not known which way the metric is better.
    """
    evidence = _checked(evidence, check_text("metric", metric))
    upwards = (
        by_name(metric)
        if higher_is_better is None
        else check_flag("higher_is_better", higher_is_better)
    )
    if upwards and metric == "loss":
        raise RequestError(
            "higher_is_better true: allowed for 'loss' is false; rename the column if it is no loss"
        )
    if upwards is None:
        raise RequestError(
            f"metric {metric!r}: its name does not say which way is better; state higher_is_better"
        )
    evidence["cost"] = -evidence[metric] if upwards else evidence[metric]
    # The metric itself stands where scores stand, unless it is the loss.
    score = "score" if metric == "loss" else metric
    ranks = sorted(evidence["rank"].unique())
    if trained_at is not None:
        trained = evidence["rank"] == trained_at
        rate = best_learning_rate(evidence[trained], "cost")
        evidence = evidence[trained | (evidence["learning_rate"] == rate)]
    runs = [
        _results_of_rank(int(rank), evidence[evidence["rank"] == rank], score) for rank in ranks
    ]
    alive = [run for run in runs if run.seeds]
    for run in alive[1:]:
        if not np.array_equal(run.examples, alive[0].examples):
            raise RequestError(
                f"evidence: ranks {alive[0].rank} and {run.rank} were not scored on the same examples"
            )
    return runs


def best_learning_rate(evidence: pd.DataFrame, cost: str = "loss") -> float | None:
    """Return the rate to judge a rank by: the smallest that cannot be told from the best, None if all diverged.

    The best has the lowest mean cost; a smaller rate whose cost is within one standard error of it (paired over
    examples, or over seeds where results are aggregates) is preferred, because the best of one seed often lies next to
    rates at which another seed collapses. That is the one-standard-error rule (Breiman et al. 1984, section 3.4.3),
    applied to every rank alike. Of rates that cannot be told from the best, those with the most seeds come first.

    Rates are compared on the seeds that every rate has been tried with, so that more seeds make none look better or
    worse. A rate with a diverged trial is out.

    Args:
        evidence: rows of one rank, with ``learning_rate``, ``seed``, ``example_id``, the cost and ``diverged``.
        cost: the column to compare by, smaller is better.

    Raises:
        RequestError: rates were scored on different examples.
    """
    gone = evidence.loc[evidence["diverged"], "learning_rate"].unique()
    usable = evidence[~evidence["learning_rate"].isin(gone)]
    rates = sorted(float(rate) for rate in usable["learning_rate"].unique())
    if len(rates) < 2:
        return rates[0] if rates else None
    by_rate = usable.groupby("learning_rate")["seed"]
    count = by_rate.nunique().to_numpy()  # (L,), of all seeds
    shared = set.intersection(*(set(seeds) for seeds in by_rate.unique()))
    if shared:
        usable = usable[usable["seed"].isin(shared)]
    unit = "example_id" if usable["example_id"].nunique() > 1 else "seed"
    costs = usable.pivot_table(index=unit, columns="learning_rate", values=cost)  # (N, L)
    best = int(costs.mean().to_numpy().argmin())
    if unit == "seed" and not shared:
        return rates[best]  # there is nothing to pair
    if costs.isna().any(axis=None):
        rank = int(usable["rank"].iloc[0])
        raise RequestError(
            f"evidence of rank {rank}: its learning rates were not scored on the same examples"
        )
    behind = costs.to_numpy() - costs.to_numpy()[:, [best]]  # (N, L), of means
    # The standard error of a single unit is not a number; nothing is near then but the best itself.
    error = (
        behind.std(0, ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else np.zeros(len(rates))
    )
    near = behind.mean(0) <= error  # (L,), true for the best
    return rates[int((near * count).argmax())]


def chance_losses(chance_loss: ChanceLoss, examples: np.ndarray) -> np.ndarray | float:
    """Return the loss that says nothing is learnt, of each of these examples where it is known so, (N,).

    Raises:
        RequestError: an example has none.
    """
    if not isinstance(chance_loss, pd.Series):
        return chance_loss
    losses = chance_loss.reindex(examples).to_numpy(dtype=float)
    if np.isnan(losses).any():
        raise RequestError(
            f"chance_loss: {int(np.isnan(losses).sum())} of {len(losses)} held-out examples have none"
        )
    return losses


def _checked(evidence: pd.DataFrame, metric: str) -> pd.DataFrame:
    if not isinstance(evidence, pd.DataFrame):
        raise RequestError(f"evidence {shown(evidence)}: allowed is a pandas DataFrame")
    if "rank" not in evidence.columns:
        raise RequestError(f"evidence lacks the column rank; it has: {some(evidence.columns, 12)}")
    if metric not in evidence.columns:
        names = [str(name) for name in evidence.columns if name not in (*KEY, "diverged")]
        raise RequestError(
            f"metric {metric!r} is not in the evidence{nearest(metric, names)}; there are: {some(names, 12)}"
        )
    evidence = evidence.reset_index(drop=True)
    for name, single in (
        ("seed", 0),
        ("learning_rate", 0.0),
        ("example_id", 0),
        ("diverged", False),
    ):
        if name not in evidence.columns:
            evidence[name] = single  # one, not named
    measured = [
        name for name in dict.fromkeys((metric, "loss", "score")) if name in evidence.columns
    ]
    evidence = typed(evidence, measured, _refuse)
    usable = evidence[~evidence["diverged"]]
    twice = usable.index[usable.duplicated(KEY)]
    if len(twice):
        raise RequestError(
            f"evidence: {len(twice)} rows repeat a {', '.join(KEY)} (row {some(twice)})"
        )
    return evidence


def _refuse(values: pd.Series, good: np.ndarray, allowed: str) -> None:
    bad = values[~good]
    if len(bad):
        raise RequestError(
            f"evidence: {values.name} {some(dict.fromkeys(map(shown, bad.tolist())))} in {len(bad)} of {len(values)} "
            f"rows (row {some(bad.index)}); allowed are {allowed}"
        )


def _results_of_rank(rank: int, evidence: pd.DataFrame, score: str) -> RankResults:
    rates = tuple(sorted(float(rate) for rate in evidence["learning_rate"].unique()))
    diverged = int(evidence.loc[evidence["diverged"]].groupby(["learning_rate", "seed"]).ngroups)
    rate = best_learning_rate(evidence, "cost")
    if rate is None:
        return RankResults(
            rank, None, rates, (), np.empty(0), np.empty((0, 0)), None, None, diverged
        )
    chosen = evidence[evidence["learning_rate"] == rate]
    seeds, row = np.unique(chosen["seed"].to_numpy(), return_inverse=True)  # (S,), (cells,)
    examples, column = np.unique(
        chosen["example_id"].to_numpy(), return_inverse=True
    )  # (N,), (cells,)

    def cells(name: str) -> np.ndarray:
        values = np.full((len(seeds), len(examples)), np.nan)  # (S, N)
        values[row, column] = chosen[name]
        return values

    cost = cells("cost")
    if np.isnan(cost).any():
        raise RequestError(
            f"evidence of rank {rank}: its seeds were not scored on the same examples"
        )
    return RankResults(
        rank=rank,
        learning_rate=rate,
        rates=rates,
        seeds=tuple(int(seed) for seed in seeds),
        examples=examples,
        cost=cost,
        loss=cells("loss") if "loss" in chosen.columns else None,
        score=cells(score) if score in chosen.columns else None,
        diverged=diverged,
    )
