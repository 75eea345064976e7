"""The rule: the smallest rank that is not worse than any other by more than a margin."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rankwise.checks import check_number
from rankwise.decide.compare import Comparison, compare
from rankwise.decide.decision import Confirmation, Decision, Gain, RankRow
from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import Runs, read_runs
from rankwise.decide.further import MOST_EXAMPLES, MOST_SEEDS, detectable_difference, next_step
from rankwise.decide.metrics import SHARE_MARGIN, default_margin
from rankwise.errors import some


def select(
    evidence: pd.DataFrame,
    metric: str = "loss",
    margin: float | None = None,
    confidence: float = 0.95,
    *,
    higher_is_better: bool | None = None,
    noise: float | None = None,
    score_margin: float = SHARE_MARGIN,
    histories: pd.DataFrame | None = None,
) -> Decision:
    """Choose the smallest rank that is not worse than any other by more than the margin.

    Ranks are compared example by example and seed by seed, each at the best of its learning rates. The upper
    bounds of all differences to the best rank hold together with the stated confidence: multiple comparisons with
    the best (Hsu 1984, *Ann. Statist.* 12, 1136), with Dunnett's critical value, so that looking for the smallest
    rank among many does not raise the chance of a wrong one.

    Args:
        evidence: one row per rank, seed and held-out example: ``rank`` and the metric; optional ``seed``,
            ``learning_rate``, ``example_id``, ``score`` (a second metric, larger is better, that should agree with the
            loss) and ``diverged`` (a trial whose loss was not finite: one row, its values ignored). Without
            ``example_id`` a row is a trial's aggregate; without ``seed`` there is one trial for each rank.
        metric: the column to compare by.
        margin: what a smaller rank may cost, in units of the metric. Default: 0.02 nats for the loss, 0.01 for metrics
            between 0 and 1, a hundredth of the mean for others.
        confidence: of the decision, between 0 and 1.
        higher_is_better: of the metric; known by its conventional name where not stated.
        noise: standard deviation over seeds of one trial's mean, where you know it: it stands in for what seeds would
            say, so that a single trial for each rank can be decided.
        score_margin: what the chosen rank may be worse in ``score``.
        histories: training losses, ``rank``, ``seed``, ``learning_rate``, ``step``, ``train_loss``; they tell
            underfitting from overfitting.

    Returns:
        The decision, with a row for each rank.

    Raises:
        RequestError: the evidence cannot serve (see `rankwise.decide.evidence.read_runs`), or margin, confidence or
            noise is not allowed.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"rank": [4, 8, 16, 4, 8, 16], "seed": [0, 0, 0, 1, 1, 1],
        ...                       "loss": [0.71, 0.503, 0.501, 0.72, 0.498, 0.502]})
        >>> select(table).rank
        8
    """
    if margin is not None:
        check_number("margin", margin, above=0)
    check_number("confidence", confidence, above=0, below=1)
    check_number("score_margin", score_margin, above=0)
    if noise is not None:
        check_number("noise", noise, above=0)
    runs = read_runs(evidence, metric, higher_is_better)
    warning = None
    if margin is None:
        margin, warning = default_margin(metric, np.concatenate([run.cost.ravel() for run in runs]))
    decision = decide(
        runs, margin, confidence, metric=metric, noise=noise, score_margin=score_margin, histories=histories
    )
    return replace(decision, warnings=(warning, *decision.warnings)) if warning else decision


def decide(
    all_runs: Sequence[Runs],
    margin: float,
    confidence: float,
    *,
    metric: str = "loss",
    noise: float | None = None,
    score_margin: float = SHARE_MARGIN,
    histories: pd.DataFrame | None = None,
) -> Decision:
    """Apply the rule of `select` to runs, ranks ascending."""
    runs = [run for run in all_runs if run.seeds]
    costs = compare(runs, "cost", noise)
    assert costs is not None  # every run has costs
    worst = {run.rank: costs.worst(run.rank, confidence) for run in runs} if costs.noise_is_known else {}
    fit = [rank for rank, (bound, _) in worst.items() if bound <= margin]
    following = None
    if fit:
        reason = _why(fit[0], costs, worst[fit[0]], metric, margin, confidence)
    else:
        reason = _why_not(costs, worst, metric, margin, confidence)
        if worst and len(runs) > 1:
            following = next_step(costs, margin, confidence)
            reason += "" if following else NOTHING_WOULD
    scores = compare(runs, "score") if metric == "loss" else None
    confirmation = _confirmation(scores, fit[0], score_margin, confidence) if fit and scores else None
    warnings = _warnings(all_runs, noise)
    if confirmation is not None and confirmation.status == "contradicts":
        warnings.append(confirmation.reason)
    return Decision(
        verdict="selected" if fit else "undetermined",
        rank=fit[0] if fit else None,
        metric=metric,
        margin=margin,
        confidence=confidence,
        reason=reason,
        next=following,
        warnings=tuple(warnings),
        table=tuple(_rows(all_runs, costs, worst, margin, confidence)),
        confirmation=confirmation,
        diagnosis=tuple(diagnose(runs, costs, histories, margin, confidence)),
        detectable_difference=detectable_difference(costs, confidence),
    )


def _rows(
    all_runs: Sequence[Runs], costs: Comparison, worst: dict[int, tuple[float, int]], margin: float, confidence: float
) -> list[RankRow]:
    alive = [run for run in all_runs if run.seeds]
    losses, scores = compare(alive, "loss"), compare(alive, "score")
    known = costs.noise_is_known

    def figures(values: Comparison | None, rank: int) -> tuple[float | None, tuple[float, float] | None]:
        if values is None:
            return None, None
        return float(values.values[rank].mean()), values.mean_interval(rank, confidence) if known else None

    rows: list[RankRow] = []
    for run in all_runs:
        if not run.seeds:
            rows.append(RankRow(rank=run.rank, seeds=0, diverged=run.diverged))
            continue
        smaller = [other.rank for other in alive if other.rank < run.rank]
        loss_mean, loss_ci = figures(losses, run.rank)
        score_mean, score_ci = figures(scores, run.rank)
        rows.append(
            RankRow(
                rank=run.rank,
                seeds=len(run.seeds),
                diverged=run.diverged,
                learning_rate=run.learning_rate or None,
                loss_mean=loss_mean,
                loss_ci=loss_ci,
                score_mean=score_mean,
                score_ci=score_ci,
                worst_difference=worst[run.rank][0] if known else None,
                non_inferior=known and worst[run.rank][0] <= margin,
                gain_over_previous=_gain(costs, losses, scores, run.rank, smaller[-1], confidence)
                if smaller and known
                else None,
            )
        )
    return rows


def _gain(
    costs: Comparison,
    losses: Comparison | None,
    scores: Comparison | None,
    rank: int,
    smaller: int,
    confidence: float,
) -> Gain:
    gain = costs.difference(smaller, rank)
    loss = losses.difference(smaller, rank) if losses else None
    score = scores.difference(rank, smaller) if scores else None
    doublings = math.log2(rank / smaller)
    low, high = gain.interval(confidence)
    return Gain(
        rank=smaller,
        loss=loss.mean if loss else None,
        loss_ci=loss.interval(confidence) if loss else None,
        score=score.mean if score else None,
        score_ci=score.interval(confidence) if score else None,
        per_doubling=gain.mean / doublings,
        per_doubling_ci=(low / doublings, high / doublings),
    )


def _confirmation(scores: Comparison, rank: int, margin: float, confidence: float) -> Confirmation | None:
    """Ask the task score, larger is better, whether another rank is ahead of the chosen one."""
    others = [other for other in scores.ranks if other != rank]
    ahead = {other: scores.difference(other, rank) for other in others}
    bound, against = max((ahead[other].upper(len(others), confidence), other) for other in others)
    # Dunnett's value holds for lower bounds as it does for upper ones: of the difference the other way round.
    shown = [
        o for o in others if -scores.difference(rank, o).upper(len(others), confidence) > 0 and ahead[o].mean > margin
    ]
    if shown:
        best = max(shown, key=lambda other: ahead[other].mean)
        reason = f"The score contradicts the loss: rank {best} scores {ahead[best].mean:.4f} higher than rank {rank}."
        return Confirmation(
            metric="score", margin=margin, status="contradicts", bound=bound, against=against, reason=reason
        )
    if bound <= margin:
        reason = f"The score confirms: rank {rank} scores at most {max(0.0, bound):.4f} below the best other rank."
        return Confirmation(
            metric="score", margin=margin, status="confirms", bound=bound, against=against, reason=reason
        )
    reason = (
        f"The score cannot tell at its margin of {margin:g}: rank {rank} may score up to {bound:.4f} below {against}'s."
    )
    return Confirmation(
        metric="score", margin=margin, status="cannot tell", bound=bound, against=against, reason=reason
    )


NOTHING_WOULD = (
    f" Up to {MOST_SEEDS} seeds and {MOST_EXAMPLES} times the held-out examples would not settle it if the differences "
    "seen persist; a larger margin would."
)


def _name(metric: str) -> tuple[str, str, str]:
    """Return how a sentence names the metric, its unit, and the side that is worse."""
    return ("held-out loss", " nats", "above") if metric == "loss" else (metric, "", "worse than")


def _why(rank: int, costs: Comparison, worst: tuple[float, int], metric: str, margin: float, confidence: float) -> str:
    (name, unit, side), (bound, other) = _name(metric), worst
    return (
        f"Rank {rank} is the smallest whose {name} is, with {confidence:.0%} confidence, at most {margin:g}{unit} "
        f"{side} that of every other rank tried ({', '.join(map(str, costs.ranks))}); the bound is {bound:+.4f}, "
        f"against rank {other}."
    )


def _why_not(
    costs: Comparison, worst: dict[int, tuple[float, int]], metric: str, margin: float, confidence: float
) -> str:
    if len(costs.ranks) < 2:
        return "Fewer than two ranks trained without diverging, so there is nothing to compare."
    if not worst:
        return (
            "There is a single number for each rank, and nothing says how much it would vary: run at least 2 seeds, "
            "keep results per example, or state the noise that you know."
        )
    (name, unit, side), rank = _name(metric), min(worst, key=lambda r: worst[r][0])
    bound, other = worst[rank]
    if not math.isfinite(bound):
        return "The ranks share no seed, and no rank has two, so that nothing says how much seeds vary: run at least 2."
    return (
        f"No rank is shown to be within {margin:g}{unit} of the best at {confidence:.0%} confidence: the nearest is "
        f"rank {rank}, whose {name} may be up to {bound:.4f}{unit} {side} rank {other}'s "
        f"(difference seen: {costs.difference(rank, other).mean:+.4f})."
    )


def _warnings(all_runs: Sequence[Runs], noise: float | None) -> list[str]:
    warnings: list[str] = []
    per_example = any(len(run.examples) > 1 for run in all_runs)
    if noise is None and per_example and max(len(run.seeds) for run in all_runs) == 1:
        warnings.append(
            "One seed only: the intervals cover the choice of held-out examples, not the luck of initial values and "
            "data order; run at least 2 seeds."
        )
    dead = [run.rank for run in all_runs if not run.seeds]
    if dead:
        warnings.append(f"Rank {some(dead)} diverged at every learning rate tried, with some seed, and is left out.")
    if len({rate for run in all_runs for rate in run.rates}) == 1:
        warnings.append(
            "One learning rate only: rank and learning rate are confounded. With lora_alpha = r a larger rank learns "
            "faster at the same rate, and what looks like an effect of rank may be one of the rate: on the built-in "
            "task, at one rate, rank 32 looked 0.17 nats better than rank 4, and 0.00 with each at its own "
            "(docs/learning-rate.md). Try several rates for each rank."
        )
    for run in all_runs:
        if len(run.rates) > 1 and run.learning_rate in (run.rates[0], run.rates[-1]):
            side, end = ("below", "lowest") if run.learning_rate == run.rates[0] else ("above", "highest")
            rate = f"the {end} learning rate tried for it ({run.learning_rate:g})"
            warnings.append(f"Rank {run.rank} is best at {rate}; try {side} it.")
    return warnings
