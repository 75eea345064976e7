"""The rule: the smallest rank that is not worse than any other by more than a margin."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from rankwise.checks import check_number
from rankwise.decide.decision import Decision, Gain, Interval, Next, RankRow
from rankwise.decide.evidence import Runs, read_runs
from rankwise.decide.variance import Spread, dunnett_critical, example_variance, interaction_variance
from rankwise.errors import some

MOST_SEEDS = 32  # the most that a suggestion asks for
MOST_EXAMPLES = 64  # times the held-out examples there are


@dataclass(frozen=True)
class _Difference:
    """Mean of one rank's losses minus another's, over the seeds and examples they share."""

    mean: float
    spread: Spread
    seeds: int

    def interval(self, confidence: float) -> Interval:
        """Return the two-sided interval for this one comparison."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.spread.df)) * self.spread.error
        return (self.mean - half, self.mean + half)


def select(evidence: pd.DataFrame, margin: float = 0.02, confidence: float = 0.95) -> Decision:
    """Choose the smallest rank whose held-out loss is not worse than any other's by more than the margin.

    Losses are compared example by example and seed by seed, each rank at the best of its learning rates. The upper
    bounds of all differences to the best rank hold together with the stated confidence: multiple comparisons with
    the best (Hsu 1984, *Ann. Statist.* 12, 1136), with Dunnett's critical value, so that looking for the smallest
    rank among many does not raise the chance of a wrong one.

    Args:
        evidence: one row per rank, seed and held-out example: ``rank``, ``seed``, ``example_id``, ``loss`` (nats),
            ``score``; optional ``learning_rate`` and ``diverged`` (a trial whose loss was not finite: one row, its
            loss ignored).
        margin: loss that a smaller rank may cost, nats per example.
        confidence: of the decision, between 0 and 1.

    Returns:
        The decision, with a row for each rank.

    Raises:
        RequestError: a column is missing, there is one rank only, a loss is not finite, a row stands twice, or
            margin or confidence is not allowed.
    """
    check_number("margin", margin, above=0)
    check_number("confidence", confidence, above=0, below=1)
    return decide(read_runs(evidence), margin, confidence)


def decide(all_runs: Sequence[Runs], margin: float, confidence: float) -> Decision:
    """Apply the rule of `select` to runs, ranks ascending."""
    runs = {run.rank: run for run in all_runs}
    ranks = list(runs)
    alive = [rank for rank in ranks if len(runs[rank].seeds)]
    differences, score_differences = (
        _all_differences(runs, alive, "loss"),
        _all_differences(runs, alive, "score"),
    )

    worst = {rank: _worst(differences, rank, alive, confidence) for rank in alive}
    rows = _rows(runs, differences, score_differences, worst, margin, confidence)
    fit = [row.rank for row in rows if row.non_inferior]
    warnings = _warnings(runs, alive)
    if fit:
        warnings += _conflict(score_differences, fit[0], alive, confidence)
        reason = _why(fit[0], ranks, worst[fit[0]], margin, confidence)
    else:
        reason = _why_not(alive, worst, differences, margin, confidence)
    following = None if fit else _next(runs, differences, alive, margin, confidence)
    if not fit and following is None and len(alive) > 1:
        reason += (
            f" Up to {MOST_SEEDS} seeds and {MOST_EXAMPLES} times the held-out examples would not settle it if the "
            "differences seen persist; a larger margin would."
        )
    return Decision(
        verdict="selected" if fit else "undetermined",
        rank=fit[0] if fit else None,
        metric="loss",
        margin=margin,
        confidence=confidence,
        reason=reason,
        next=following,
        warnings=tuple(warnings),
        table=tuple(rows),
    )


def _all_differences(runs: dict[int, Runs], alive: Sequence[int], what: str) -> dict[tuple[int, int], _Difference]:
    """Return every ordered pair's difference; the part due to seeds is pooled over all ranks."""
    values = {rank: getattr(runs[rank], what) for rank in alive}
    seeds = sorted({seed for rank in alive for seed in runs[rank].seeds})
    means = np.full((len(alive), len(seeds)), np.nan)  # (R, S)
    for row, rank in enumerate(alive):
        means[row, [seeds.index(seed) for seed in runs[rank].seeds]] = values[rank].mean(1)
    per_trial, df = interaction_variance(means)
    pairs: dict[tuple[int, int], _Difference] = {}
    for one in alive:
        for other in alive:
            shared = [seed for seed in runs[one].seeds if seed in runs[other].seeds]
            if one == other or not shared:
                continue
            first = values[one][[runs[one].seeds.index(seed) for seed in shared]]
            second = values[other][[runs[other].seeds.index(seed) for seed in shared]]
            difference = first - second  # (S, N)
            spread = Spread(
                seeds=2 * per_trial / len(shared),
                seeds_df=df,
                examples=example_variance(difference),
                examples_df=difference.shape[1] - 1,
            )
            pairs[one, other] = _Difference(float(difference.mean()), spread, len(shared))
    return pairs


def _worst(
    differences: dict[tuple[int, int], _Difference], rank: int, alive: Sequence[int], confidence: float
) -> tuple[float, int]:
    """Return the upper bound of a rank's loss minus the best other's, and the rank that sets it."""
    bounds = [
        (_upper(differences[rank, other], len(alive) - 1, confidence), other)
        for other in alive
        if (rank, other) in differences
    ]
    return max(bounds, default=(np.inf, rank))


def _upper(difference: _Difference, comparisons: int, confidence: float) -> float:
    spread = difference.spread
    # Degrees of freedom to two digits: the critical value does not see more, and the cache does.
    df = float(f"{spread.df:.2g}") if np.isfinite(spread.df) else np.inf
    return difference.mean + dunnett_critical(comparisons, df, confidence) * spread.error


def _rows(
    runs: dict[int, Runs],
    differences: dict[tuple[int, int], _Difference],
    score_differences: dict[tuple[int, int], _Difference],
    worst: dict[int, tuple[float, int]],
    margin: float,
    confidence: float,
) -> list[RankRow]:
    alive = [rank for rank, run in runs.items() if len(run.seeds)]
    rows: list[RankRow] = []
    for rank, run in runs.items():
        if rank not in alive:
            rows.append(RankRow(rank=rank, seeds=0, diverged=run.diverged))
            continue
        smaller = [other for other in alive if other < rank and (rank, other) in differences]
        rows.append(
            RankRow(
                rank=rank,
                seeds=len(run.seeds),
                diverged=run.diverged,
                learning_rate=run.learning_rate or None,
                loss_mean=float(run.loss.mean()),
                loss_ci=mean_interval(run.loss, [runs[other].loss for other in alive], confidence),
                score_mean=float(run.score.mean()),
                score_ci=mean_interval(run.score, [runs[other].score for other in alive], confidence),
                worst_difference=worst[rank][0],
                non_inferior=worst[rank][0] <= margin,
                gain_over_previous=_gain(differences, score_differences, rank, smaller[-1], confidence)
                if smaller
                else None,
            )
        )
    return rows


def mean_interval(values: np.ndarray, family: Sequence[np.ndarray], confidence: float) -> Interval:
    """Return the interval of a mean over seeds and examples.

    Args:
        values: (S, N).
        family: the same of all ranks, whose variance between seeds is pooled.
        confidence: two-sided.
    """
    between = [float(other.mean(1).var(ddof=1)) * (len(other) - 1) for other in family if len(other) > 1]
    df = sum(len(other) - 1 for other in family)
    spread = Spread(
        seeds=sum(between) / df / len(values) if df else 0.0,
        seeds_df=df,
        examples=example_variance(values),
        examples_df=values.shape[1] - 1,
    )
    return _Difference(float(values.mean()), spread, len(values)).interval(confidence)


def _gain(
    differences: dict[tuple[int, int], _Difference],
    score_differences: dict[tuple[int, int], _Difference],
    rank: int,
    smaller: int,
    confidence: float,
) -> Gain:
    loss, score = differences[smaller, rank], score_differences[rank, smaller]
    return Gain(
        rank=smaller,
        loss=loss.mean,
        loss_ci=loss.interval(confidence),
        score=score.mean,
        score_ci=score.interval(confidence),
    )


def _why(rank: int, ranks: Sequence[int], worst: tuple[float, int], margin: float, confidence: float) -> str:
    bound, other = worst
    return (
        f"Rank {rank} is the smallest whose held-out loss is, with {confidence:.0%} confidence, at most {margin:g} "
        f"nats above that of every other rank tried ({', '.join(map(str, ranks))}); the bound is {bound:+.4f}, "
        f"against rank {other}."
    )


def _why_not(
    alive: Sequence[int],
    worst: dict[int, tuple[float, int]],
    differences: dict[tuple[int, int], _Difference],
    margin: float,
    confidence: float,
) -> str:
    if len(alive) < 2:
        return "Fewer than two ranks trained without diverging, so there is nothing to compare."
    rank = min(alive, key=lambda r: worst[r][0])
    bound, other = worst[rank]
    return (
        f"No rank is shown to be within {margin:g} nats of the best at {confidence:.0%} confidence: the nearest is "
        f"rank {rank}, whose loss may be up to {bound:.4f} above rank {other}'s "
        f"(difference seen: {differences[rank, other].mean:+.4f})."
    )


def _next(
    runs: dict[int, Runs],
    differences: dict[tuple[int, int], _Difference],
    alive: Sequence[int],
    margin: float,
    confidence: float,
) -> Next | None:
    """Find the fewest seeds, or else seeds and examples, with which a rank would be selected as things look now."""
    if len(alive) < 2:
        return None
    seeds_now = max(len(runs[rank].seeds) for rank in alive)
    examples_now = runs[alive[0]].loss.shape[1]
    # One seed says nothing of how much seeds vary: a second comes before any sum.
    for times_examples in [2.0**k for k in range(int(np.log2(MOST_EXAMPLES)) + 1)]:
        for seeds in range(max(2, seeds_now), MOST_SEEDS + 1):
            if seeds == seeds_now and times_examples == 1:
                continue
            for rank in alive:
                pairs = [differences[rank, other] for other in alive if (rank, other) in differences]
                scaled = [
                    _Difference(pair.mean, pair.spread.scaled(seeds / pair.seeds, times_examples), seeds)
                    for pair in pairs
                ]
                if max(_upper(pair, len(alive) - 1, confidence) for pair in scaled) <= margin:
                    examples = int(examples_now * times_examples)
                    more = f" and {examples} held-out examples" if times_examples > 1 else ""
                    advice = f"{seeds} seeds per rank{more} would select rank {rank} if the differences seen persist."
                    return Next(
                        seeds=seeds,
                        held_out_examples=examples,
                        rank=rank,
                        estimated_seconds=None,
                        advice=advice,
                    )
    return None


def _warnings(runs: dict[int, Runs], alive: Sequence[int]) -> list[str]:
    warnings: list[str] = []
    if max((len(run.seeds) for run in runs.values()), default=0) == 1:
        warnings.append(
            "One seed only: the intervals cover the choice of held-out examples, not the luck of initial values and "
            "data order; run at least 2 seeds."
        )
    dead = [rank for rank in runs if rank not in alive]
    if dead:
        warnings.append(f"Rank {some(dead)} diverged at every learning rate tried, with some seed, and is left out.")
    if len({rate for run in runs.values() for rate in run.rates}) == 1:
        warnings.append(
            "One learning rate only: rank and learning rate are confounded (a larger rank learns faster at the same "
            "rate), so what looks like an effect of rank may be one of the rate; try several per rank."
        )
    for rank in alive:
        tried = runs[rank].rates
        rate = runs[rank].learning_rate
        if len(tried) > 1 and rate in (tried[0], tried[-1]):
            side, end = ("below", "lowest") if rate == tried[0] else ("above", "highest")
            warnings.append(f"Rank {rank} is best at the {end} learning rate tried for it ({rate:g}); try {side} it.")
    return warnings


def _conflict(
    score_differences: dict[tuple[int, int], _Difference], rank: int, alive: Sequence[int], confidence: float
) -> list[str]:
    """Say where the task score contradicts the loss."""
    better = []
    for other in alive:
        if (other, rank) in score_differences:
            low, _ = score_differences[other, rank].interval(confidence)
            if low > 0:
                better.append(f"rank {other} scores {score_differences[other, rank].mean:.4f} higher")
    return [f"The task score disagrees with the loss: {some(better)} than rank {rank}."] if better else []
