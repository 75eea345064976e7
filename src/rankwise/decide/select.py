"""The rule: the smallest rank that is not worse than any other by more than a margin."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from rankwise.checks import check_number
from rankwise.decide.decision import Confirmation, Decision, Gain, Interval, RankRow
from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import (
    LEAST_GAIN,
    ChanceLoss,
    RankResults,
    chance_losses,
    read_rank_results,
)
from rankwise.decide.explain import (
    NOTHING_WOULD,
    PLAIN,
    Wording,
    larger_may_be_better,
    learn_first,
    less_than_the_margin,
    warnings_of,
    why,
    why_not,
    why_nothing,
)
from rankwise.decide.metrics import SHARE_MARGIN, default_margin
from rankwise.decide.pairwise import Comparison, compare
from rankwise.decide.power import detectable_difference, next_step
from rankwise.errors import RequestError


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
    chance_loss: ChanceLoss | None = None,
    wording: Wording = PLAIN,
    trained_at: int | None = None,
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
        chance_loss: held-out loss of guessing by the classes' shares, nats per example, where it is known: where no
            rank gets clearly below it, nothing was learnt and no rank is chosen. A series indexed by ``example_id``,
            such as the base's own losses, is compared example by example.
        wording: how the decision's sentences speak of the loss.
        trained_at: the ranks below this one were not trained: they are cuts of adapters of this rank, so that the
            answer is which rank to keep. Whether a rank underfits is then no question.

    Returns:
        The decision, with a row for each rank.

    Raises:
        RequestError: the evidence cannot serve (see `rankwise.decide.evidence.read_rank_results`), or margin, confidence
            or noise is not allowed.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"rank": [4, 8, 16, 4, 8, 16], "seed": [0, 0, 0, 1, 1, 1],
        ...                       "loss": [0.71, 0.503, 0.501, 0.72, 0.498, 0.502]})
        >>> select(table).rank
        8
    """
    if margin is not None:
        margin = check_number("margin", margin, above=0)
    confidence = check_number("confidence", confidence, above=0, below=1)
    score_margin = check_number("score_margin", score_margin, above=0)
    if noise is not None:
        noise = check_number("noise", noise, above=0)
    if chance_loss is not None and not isinstance(chance_loss, pd.Series):
        chance_loss = check_number("chance_loss", chance_loss, above=0)
    runs = read_rank_results(evidence, metric, higher_is_better, trained_at)
    if len(runs) < 2:
        raise RequestError(f"evidence holds {len(runs)} rank; at least two are needed to compare")
    warning = None
    if margin is None:
        margin, warning = default_margin(metric, np.concatenate([run.cost.ravel() for run in runs]))
    decision = decide(
        runs,
        margin,
        confidence,
        metric=metric,
        noise=noise,
        score_margin=score_margin,
        histories=histories,
        chance_loss=chance_loss,
        wording=wording,
        trained_at=trained_at,
    )
    return replace(decision, warnings=(warning, *decision.warnings)) if warning else decision


def decide(
    all_runs: Sequence[RankResults],
    margin: float,
    confidence: float,
    *,
    metric: str = "loss",
    noise: float | None = None,
    score_margin: float = SHARE_MARGIN,
    histories: pd.DataFrame | None = None,
    chance_loss: ChanceLoss | None = None,
    wording: Wording = PLAIN,
    trained_at: int | None = None,
) -> Decision:
    """Apply the rule of `select` to runs, ranks ascending."""
    runs = [run for run in all_runs if run.seeds]
    costs = compare(runs, "cost", noise)
    assert costs is not None  # every run has costs
    worst = (
        {run.rank: costs.worst(run.rank, confidence) for run in runs}
        if costs.noise_is_known
        else {}
    )
    # The noise that was stated is that of the metric.
    losses = compare(runs, "loss", noise if metric == "loss" else None)
    above = (
        {}
        if chance_loss is None
        else _above(runs, chance_loss, noise if metric == "loss" else None, confidence)
    )
    nothing_learnt = bool(above) and min(bound for _, bound in above.values()) >= 0
    fit = [rank for rank, (bound, _) in worst.items() if bound <= margin and not nothing_learnt]
    following = None
    if fit:
        reason = why(fit[0], costs, worst[fit[0]], metric, margin, confidence, wording, trained_at)
    elif worst and losses and nothing_learnt:
        reason = why_nothing(losses, above, wording)
    else:
        reason = why_not(costs, worst, metric, margin, confidence, wording)
        # Where no bound is finite the reason says what to do.
        if len(runs) > 1 and any(math.isfinite(bound) for bound, _ in worst.values()):
            following = next_step(costs, margin, confidence)
            reason += "" if following else NOTHING_WOULD
    scores = compare(runs, "score", noise if metric != "loss" else None)
    confirmation = None
    if metric == "loss" and fit and scores and scores.noise_is_known:
        confirmation = _confirmation(scores, fit[0], score_margin, confidence)
    warnings = warnings_of(all_runs, noise, trained_at, rates_differ=not nothing_learnt)
    if nothing_learnt:
        warnings.insert(0, learn_first(above, wording))
    if fit and fit[0] in above and above[fit[0]][1] >= 0:
        warnings.append(less_than_the_margin(fit[0], margin, wording))
    if fit and trained_at is None and (further := larger_may_be_better(costs, fit[0], margin)):
        warnings.append(further)
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
        table=tuple(_rows(all_runs, costs, losses, scores, metric, worst, margin, confidence)),
        confirmation=confirmation,
        # Between ranks that learnt nothing there is nothing to diagnose, nor of cuts, which were not trained.
        diagnosis=()
        if nothing_learnt or trained_at is not None
        else tuple(diagnose(runs, costs, histories, margin, confidence)),
        detectable_difference=detectable_difference(costs, confidence),
        question="train" if trained_at is None else "keep",
        trained_at=trained_at,
    )


def _above(
    runs: Sequence[RankResults], chance_loss: ChanceLoss, noise: float | None, confidence: float
) -> dict[int, tuple[float, float]]:
    """Return how far each rank's held-out loss lies above guessing: its mean, and the interval's upper end.

    The least gain that counts as one is on the upper end.
    """
    chance = (
        chance_losses(chance_loss, runs[0].examples) if runs else 0.0
    )  # all were scored on the same
    over = [replace(run, loss=None if run.loss is None else run.loss - chance) for run in runs]
    losses = compare(over, "loss", noise)
    if losses is None:
        return {}
    least = LEAST_GAIN * float(np.mean(chance))
    return {
        rank: (float(values.mean()), losses.mean_interval(rank, confidence)[1] + least)
        for rank, values in losses.values.items()
    }


def _rows(
    all_runs: Sequence[RankResults],
    costs: Comparison,
    losses: Comparison | None,
    scores: Comparison | None,
    metric: str,
    worst: dict[int, tuple[float, int]],
    margin: float,
    confidence: float,
) -> list[RankRow]:
    known = costs.noise_is_known

    def figures(values: Comparison | None, rank: int) -> tuple[float | None, Interval | None]:
        if values is None:
            return None, None
        return float(values.values[rank].mean()), (
            values.mean_interval(rank, confidence) if values.noise_is_known else None
        )

    rows: list[RankRow] = []
    for run in all_runs:
        if not run.seeds:
            rows.append(RankRow(rank=run.rank, seeds=0, diverged=run.diverged))
            continue
        smaller = [rank for rank in costs.ranks if rank < run.rank]
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
                gain_over_previous=_gain(
                    costs, losses, scores, metric, run.rank, smaller[-1], confidence
                )
                if smaller and known
                else None,
            )
        )
    return rows


def _gain(
    costs: Comparison,
    losses: Comparison | None,
    scores: Comparison | None,
    metric: str,
    rank: int,
    smaller: int,
    confidence: float,
) -> Gain:
    gain = costs.difference(smaller, rank)
    loss = losses.difference(smaller, rank) if losses else None
    # Where the metric compared stands in the scores' place, its costs know which way it is better.
    score = (scores.difference(rank, smaller) if metric == "loss" else gain) if scores else None
    doublings = math.log2(rank / smaller)
    low, high = gain.interval(confidence)
    return Gain(
        rank=smaller,
        loss=loss.mean if loss else None,
        loss_ci=loss.interval(confidence) if loss and losses and losses.noise_is_known else None,
        score=score.mean if score else None,
        score_ci=score.interval(confidence) if score and scores and scores.noise_is_known else None,
        per_doubling=gain.mean / doublings,
        per_doubling_ci=(low / doublings, high / doublings),
    )


def _confirmation(
    scores: Comparison, rank: int, margin: float, confidence: float
) -> Confirmation | None:
    """Ask the task score, larger is better, whether another rank is ahead of the chosen one."""
    others = [other for other in scores.ranks if other != rank]
    ahead = {other: scores.difference(other, rank) for other in others}
    bound, against = max((ahead[other].upper(len(others), confidence), other) for other in others)
    # Dunnett's value holds for lower bounds as it does for upper ones: of the difference the other way round.
    shown = [
        o
        for o in others
        if -scores.difference(rank, o).upper(len(others), confidence) > 0 and ahead[o].mean > margin
    ]
    status: Literal["confirms", "contradicts", "cannot tell"]
    if shown:
        best = max(shown, key=lambda other: ahead[other].mean)
        status = "contradicts"
        reason = f"The score contradicts the loss: rank {best} scores {ahead[best].mean:.4f} higher than rank {rank}."
    elif bound <= margin:
        status = "confirms"
        below = f"at most {bound:.4f} below" if bound >= 0.0001 else "no lower than"
        reason = f"The score confirms: rank {rank} scores {below} the best other rank."
    else:
        status = "cannot tell"
        reason = f"The score cannot tell at its margin of {margin:.3g}: rank {rank} may lie {bound:.4f} below {against}."
    return Confirmation(
        metric="score", margin=margin, status=status, bound=bound, against=against, reason=reason
    )
