"""Evidence: checked columns, the learning rate that each rank is judged by, and arrays."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from rankwise.checks import LARGEST, check_flag, check_text
from rankwise.decide.grid import TRIAL_KEY, Grid, ids_ascend, rows_where
from rankwise.decide.metrics import higher_is_better as direction_by_name
from rankwise.errors import RequestError, nearest, shown, some

KEY = [*TRIAL_KEY, "example_id"]
NO_EXAMPLE = -1  # in place of an example's id: the row is an aggregate, or diverged
HEALED = "healed"  # optional column: truncated adapters that were trained on; empty means false
LEAST_GAIN = 1e-4  # share of the chance-level loss; a smaller gain may be rounding
BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

ChanceLoss = float | pd.Series
"""Chance-level held-out loss, nats: its mean, or a loss per example, indexed by ``example_id``."""

Refuse = Callable[[pd.Series, np.ndarray, str], None]
"""Takes a column, the mask of its good rows and what is allowed; raises if a row is not good."""


@dataclass(frozen=True)
class RankResults:
    """The results of one rank's trials at the learning rate that the rank is judged by.

    Attributes:
        learning_rate: None if every rate diverged.
        rates: all rates tried, ascending.
        seeds: ascending, (S,).
        examples: ids of the held-out examples, sorted, (N,); a single one for aggregates.
        cost: the metric compared, with a sign that makes smaller values better, (S, N).
        loss: held-out loss in nats, (S, N), where there are losses.
        score: task score, or the metric compared if that is not the loss, (S, N).
        diverged: number of trials whose loss was not finite, at any rate.
        rate_costs: mean cost at each of the rates; NaN where a trial diverged.
        per_example: whether the evidence names examples; otherwise its rows are aggregates.
        healed: whether these are truncated adapters that were trained on.
        cost_by_rate: seeds, (S,), and cost, (S, N), at every rate at which no trial diverged.
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
    rate_costs: tuple[float, ...]
    per_example: bool = True
    healed: bool = False
    cost_by_rate: Mapping[float, tuple[tuple[int, ...], np.ndarray]] = field(default_factory=dict)

    @property
    def score_is_loss(self) -> bool:
        """Whether the score is the loss with another sign, which cannot confirm it."""
        if self.loss is None or self.score is None:
            return False
        return bool((self.score == -self.loss).all())


def read_rank_results(
    evidence: pd.DataFrame,
    metric: str = "loss",
    higher_is_better: bool | None = None,
    trained_at: int | None = None,
) -> list[RankResults]:
    """Turn a table of evidence into arrays, one `RankResults` per rank, ranks ascending.

    Args:
        evidence: a table with the columns that `rankwise.select` names.
        metric: the column to compare by.
        higher_is_better: direction of the metric; by default known from its name.
        trained_at: the trained rank, if the smaller ranks are truncated adapters. Only those
            trained at its own rate then count, or rates would be compared instead of ranks; and
            those that were trained on afterwards (`rankwise.decide.healed`).

    Raises:
        RequestError: a column or value is not allowed, a row appears twice, examples differ between
            ranks or rates, or the direction of the metric is not known.
    """
    per_example = isinstance(evidence, pd.DataFrame) and "example_id" in evidence.columns
    evidence = _checked_evidence(evidence, check_text("metric", metric))
    upwards = _higher_is_better(metric, higher_is_better)
    usable = rows_where(evidence, ~evidence["diverged"])["example_id"]
    if len(usable) and usable.eq(NO_EXAMPLE).all():
        per_example = False
    evidence["cost"] = -evidence[metric] if upwards else evidence[metric]
    score = "score" if metric == "loss" else metric
    ranks = sorted(evidence["rank"].unique())
    if trained_at is not None:
        trained = evidence["rank"] == trained_at
        rate = best_learning_rate(evidence[trained], "cost")
        at_rate = evidence["learning_rate"] == rate
        evidence = evidence[trained | at_rate | is_healed(evidence)]
    results = []
    for rank in ranks:
        rows = rows_where(evidence, evidence["rank"].eq(rank))
        results.append(replace(_rank_results(int(rank), rows, score), per_example=per_example))
    alive = [one for one in results if one.seeds]
    for one in alive[1:]:
        if not np.array_equal(one.examples, alive[0].examples):
            both = f"ranks {alive[0].rank} and {one.rank}"
            raise RequestError(f"evidence: {both} were not scored on the same examples")
    return results


def is_healed(evidence: pd.DataFrame) -> pd.Series:
    """Return whether each row is of a truncated adapter that was trained on."""
    if HEALED not in evidence.columns:
        return pd.Series(False, index=evidence.index)
    return evidence[HEALED].eq(True)


def best_learning_rate(evidence: pd.DataFrame, cost: str = "loss") -> float | None:
    """Return the rate to judge a rank by: the smallest that cannot be told from the best.

    The best rate has the lowest mean cost. A smaller rate is preferred if its cost is within one
    standard error of the best (paired over examples, or over seeds where results are aggregates),
    because the best rate of one seed often lies next to rates at which another seed collapses. This
    is the one-standard-error rule (Breiman et al. 1984, section 3.4.3), applied to all ranks alike.
    Among rates that cannot be told from the best, those with the most seeds come first.

    The best rate is found on the seeds that every rate was tried with, and every other rate is
    compared with it on the seeds that both have, so that more seeds do not make a rate look better
    or worse. Rates without a common seed, as `once` tries them, are compared as they are: their
    difference then also has that of the seeds. A rate with a diverged trial is excluded. So is a
    higher one that the diverged seed did not try, unless no other is left: it lies beyond a rate at
    which training was seen to fail.

    Args:
        evidence: rows of one rank, with ``learning_rate``, ``seed``, ``example_id``, the cost and
            ``diverged``.
        cost: the column to compare by; smaller is better.

    Returns:
        None if every rate diverged.

    Raises:
        RequestError: rates were scored on different examples.
    """
    diverged = evidence.loc[evidence["diverged"], "learning_rate"].unique()
    usable = rows_where(evidence, ~evidence["learning_rate"].isin(diverged))
    if len(diverged) and (beyond := _rates_beyond(evidence, usable)) < set(usable["learning_rate"]):
        usable = rows_where(usable, ~usable["learning_rate"].isin(beyond))
    rates = sorted(float(rate) for rate in usable["learning_rate"].unique())
    if len(rates) < 2:
        return rates[0] if rates else None
    seeds_by_rate = usable.groupby("learning_rate")["seed"].unique().map(set)
    shared = set.intersection(*seeds_by_rate)
    common = usable[usable["seed"].isin(shared)] if shared else usable
    unit = "example_id" if usable["example_id"].nunique() > 1 else "seed"
    best = rates[int(common.groupby("learning_rate")[cost].mean().to_numpy().argmin())]
    if unit == "seed" and not shared:
        return best  # nothing can be paired
    near = [_is_near(usable, rate, best, unit, cost) for rate in rates]
    seed_counts = seeds_by_rate.map(len).to_numpy()  # (L,)
    return rates[int((np.array(near) * seed_counts).argmax())]


def _rates_beyond(evidence: pd.DataFrame, usable: pd.DataFrame) -> set[float]:
    """Return usable rates above one at which a seed diverged that did not try them."""
    lowest = evidence[evidence["diverged"]].groupby("seed")["learning_rate"].min()
    tried = usable.groupby("learning_rate")["seed"].unique()
    return {
        rate
        for rate, seeds in zip(tried.index.tolist(), tried, strict=True)
        if (lowest[~lowest.index.isin(seeds)] < rate).any()
    }


def _is_near(evidence: pd.DataFrame, rate: float, best: float, unit: str, cost: str) -> bool:
    """Whether a rate's cost is within one standard error of the best rate's.

    Args:
        evidence: rows of one rank.
        rate: the rate asked about.
        best: the best rate.
        unit: the column to pair by.
        cost: the column to compare by.
    """
    if rate == best:
        return True
    trials = [evidence[evidence["learning_rate"] == one] for one in (rate, best)]
    if both := set(trials[0]["seed"]) & set(trials[1]["seed"]):
        trials = [rows[rows["seed"].isin(both)] for rows in trials]
    own, others = (rows.groupby(unit)[cost].mean() for rows in trials)
    if set(own.index) != set(others.index):
        rank = int(evidence["rank"].iloc[0])
        raise RequestError(
            f"evidence of rank {rank}: its learning rates were not scored on the same examples"
        )
    behind = (own - others).to_numpy()  # (N,)
    # With a single unit no error is known, so only a rate that costs no more is near.
    error = behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else 0.0
    return bool(behind.mean() <= error)


def chance_losses(chance_loss: ChanceLoss, examples: np.ndarray) -> np.ndarray | float:
    """Return the chance-level loss of each example, (N,), or its mean where only that is known.

    Raises:
        RequestError: an example has no chance-level loss.
    """
    if not isinstance(chance_loss, pd.Series):
        return chance_loss
    losses = chance_loss.reindex(examples).to_numpy(dtype=float)
    if np.isnan(losses).any():
        missing = int(np.isnan(losses).sum())
        raise RequestError(f"chance_loss: {missing} of {len(losses)} held-out examples have none")
    return losses


def check_columns(evidence: pd.DataFrame, measured: Iterable[str], refuse: Refuse) -> pd.DataFrame:
    """Return a copy of the evidence in which every column has its type.

    Args:
        evidence: ``rank``, ``seed``, ``learning_rate``, ``diverged``, the measured columns and
            perhaps ``example_id``.
        measured: columns of metrics; their values are not checked in rows that diverged.
        refuse: called with each column and the mask of its good rows.
    """
    evidence = evidence.copy(deep=False)  # its columns are replaced, not written into
    evidence["diverged"] = as_booleans(evidence["diverged"], refuse)
    wholes = (("rank", "whole numbers of at least 1", 1.0), ("seed", "whole numbers", -LARGEST))
    for name, allowed, least in wholes:
        numbers = as_numbers(evidence[name])
        whole = (least <= numbers) & (numbers <= LARGEST) & (np.floor(numbers) == numbers)
        refuse(evidence[name], whole, allowed)
        evidence[name] = numbers.astype(np.int64)
    rates = as_numbers(evidence["learning_rate"])
    refuse(evidence["learning_rate"], np.isfinite(rates) & (rates >= 0), "numbers above 0")
    evidence["learning_rate"] = rates
    for name in measured:
        values = as_measures(evidence[name])
        good = np.isfinite(values) | evidence["diverged"].to_numpy()
        allowed = "finite numbers; mark a trial whose loss is not finite in a column diverged"
        refuse(evidence[name], good, allowed)
        evidence[name] = values
    if "example_id" in evidence.columns:
        evidence["example_id"] = _example_ids(evidence, refuse)
    return evidence


def as_numbers(values: pd.Series) -> np.ndarray:
    """Return a column as numbers, (rows,): NaN where a value is not a number, or is a boolean."""
    if values.dtype == np.float64:
        return values.to_numpy()
    if pd.api.types.is_bool_dtype(values):
        return np.full(len(values), np.nan)
    if values.dtype == object:  # mixed types: text may be a number, lists and booleans are not
        kinds = (str, np.integer, np.floating)
        values = values.map(lambda one: one if isinstance(one, kinds) or is_number(one) else None)
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def as_measures(column: pd.Series) -> np.ndarray:
    """Return a column of a metric as numbers, (rows,); true, as in a correct answer, is 1."""
    if pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return as_numbers(column)


def as_booleans(values: pd.Series, refuse: Refuse) -> pd.Series:
    """Return a column of booleans, written as booleans, as 0 and 1, or as text."""
    if values.dtype == bool:
        return values
    booleans = values.map(lambda value: BOOLEANS.get(str(value).strip().lower()))
    refuse(values, booleans.notna().to_numpy(), "true and false")
    return booleans.astype(bool)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that fits into a float; booleans are not numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**300
    return isinstance(value, float)


def _example_ids(evidence: pd.DataFrame, refuse: Refuse) -> pd.Series:
    """Return ids as whole numbers if all are whole, else as text; -1 for a diverged trial."""
    ids = evidence["example_id"]
    refuse(ids, (ids.notna() | evidence["diverged"]).to_numpy(), "an id for each example")
    ids = ids.where(ids.notna(), -1)
    if pd.api.types.is_float_dtype(ids) and ((ids % 1 == 0) & (ids.abs() <= LARGEST)).all():
        return ids.astype(np.int64)
    return ids if pd.api.types.is_signed_integer_dtype(ids) else ids.astype(str)


def _checked_evidence(evidence: pd.DataFrame, metric: str) -> pd.DataFrame:
    if not isinstance(evidence, pd.DataFrame):
        raise RequestError(f"evidence {shown(evidence)}: allowed is a pandas DataFrame")
    if "rank" not in evidence.columns:
        raise RequestError(f"evidence lacks the column rank; it has: {some(evidence.columns, 12)}")
    if metric not in evidence.columns:
        names = [str(name) for name in evidence.columns if name not in (*KEY, "diverged")]
        near = nearest(metric, names)
        raise RequestError(
            f"metric {metric!r} is not in the evidence{near}; there are: {some(names, 12)}"
        )
    evidence = evidence.reset_index(drop=True)
    defaults = {"seed": 0, "learning_rate": 0.0, "example_id": 0, "diverged": False}
    for name, default in defaults.items():
        if name not in evidence.columns:
            evidence[name] = default
    measured = [name for name in dict.fromkeys((metric, "loss", "score")) if name in evidence]
    evidence = check_columns(evidence, measured, _refuse)
    usable = rows_where(evidence, ~evidence["diverged"])
    repeated = usable.index[:0]
    if not ids_ascend(usable):
        repeated = usable.index[usable.duplicated(KEY)]
    if len(repeated):
        raise RequestError(
            f"evidence: {len(repeated)} rows repeat a {', '.join(KEY)} (row {some(repeated)})"
        )
    return evidence


def _refuse(values: pd.Series, good: np.ndarray, allowed: str) -> None:
    bad = values[~good]
    if len(bad):
        raise RequestError(
            f"evidence: {values.name} {some(dict.fromkeys(map(shown, bad.tolist())))} in "
            f"{len(bad)} of {len(values)} rows (row {some(bad.index)}); allowed are {allowed}"
        )


def _higher_is_better(metric: str, stated: bool | None) -> bool:
    known = direction_by_name(metric)
    if stated is not None:
        known = check_flag("higher_is_better", stated)
    if known is None:
        raise RequestError(f"metric {metric!r} has no known direction; state higher_is_better")
    if known and metric == "loss":
        raise RequestError(
            "higher_is_better true: allowed for 'loss' is false; rename a column that is not a loss"
        )
    return known


def _rank_results(rank: int, evidence: pd.DataFrame, score: str) -> RankResults:
    rates = tuple(sorted(float(rate) for rate in evidence["learning_rate"].unique()))
    diverged = evidence.loc[evidence["diverged"], ["learning_rate", "seed"]].drop_duplicates()
    means = evidence.groupby("learning_rate")["cost"].mean()  # (L,)
    rate_costs = tuple(means.mask(means.index.isin(diverged["learning_rate"])).tolist())
    rate = best_learning_rate(evidence, "cost")
    if rate is None:
        cells = np.empty((0, 0))
        empty = (np.empty(0), cells, None, None)
        return RankResults(rank, None, rates, (), *empty, len(diverged), rate_costs)
    chosen = rows_where(evidence, evidence["learning_rate"].eq(rate))
    grid = Grid(chosen)
    cost = grid.array("cost")
    if np.isnan(cost).any():
        raise RequestError(
            f"evidence of rank {rank}: its seeds were not scored on the same examples"
        )
    usable = rows_where(evidence, ~evidence["learning_rate"].isin(diverged["learning_rate"]))
    return RankResults(
        rank=rank,
        learning_rate=rate,
        rates=rates,
        seeds=grid.seeds,
        examples=grid.examples,
        cost=cost,
        loss=grid.array("loss") if "loss" in chosen.columns else None,
        score=grid.array(score) if score in chosen.columns else None,
        diverged=len(diverged),
        healed=bool(is_healed(chosen).all()),
        rate_costs=rate_costs,
        cost_by_rate=_cost_by_rate(usable),
    )


def _cost_by_rate(evidence: pd.DataFrame) -> dict[float, tuple[tuple[int, ...], np.ndarray]]:
    """Return seeds, (S,), and cost, (S, N), of one rank at each rate."""
    costs = {}
    for rate in evidence["learning_rate"].unique():
        grid = Grid(rows_where(evidence, evidence["learning_rate"].eq(rate)))
        costs[float(rate)] = grid.seeds, grid.array("cost")
    return costs
