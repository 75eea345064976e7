"""The choice: the smallest fitting rank, whether the score agrees, or what would settle it."""

from dataclasses import dataclass, replace
from math import isfinite

from rankwise.decide.decision import Confirmation, Next
from rankwise.decide.findings import Findings
from rankwise.decide.pairwise import Comparison
from rankwise.decide.power import next_step


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What follows from the findings, still without sentences.

    Attributes:
        rank: the smallest rank within the margin of all others; None if there is none.
        confirmation: whether the task score agrees; None if no rank was chosen or no score tells.
        next: what to run to settle an open question; None if a rank was chosen or nothing would.
    """

    rank: int | None
    confirmation: Confirmation | None = None
    next: Next | None = None


def choose(findings: Findings) -> Choice:
    """Choose the smallest rank that fits, or find what would settle the question."""
    rule, scores = findings.rule, findings.scores
    if not findings.fitting:
        return Choice(rank=None, next=_next(findings))
    rank, confirmation = findings.fitting[0], None
    if rule.metric == "loss" and scores is not None and scores.noise_is_known:
        confirmation = _confirm(scores, rank, rule.score_margin, rule.confidence)
    return Choice(rank=rank, confirmation=confirmation)


def _next(findings: Findings) -> Next | None:
    # More of the same does not help where nothing was learnt or no bound is finite.
    settles = any(isfinite(bound.upper) for bound in findings.bounds.values())
    if findings.nothing_learnt or not settles:
        return None
    step = next_step(findings.comparison, findings.margin, findings.rule.confidence)
    if step is None:
        return None
    return replace(step, estimated_seconds=_training_seconds(findings, step.seeds))


def _training_seconds(findings: Findings, seeds: int) -> float | None:
    """Return the time of training up to this many seeds per rank; None if times are not known."""
    times = [row.train_seconds for row in findings.table if row.train_seconds is not None]
    all_known = len(times) == len(findings.table)
    keep = findings.rule.trained_at is not None  # a truncated adapter takes no training of its own
    if not all_known and not (times and keep):
        return None
    return sum((row.train_seconds or 0.0) * max(0, seeds - row.seeds) for row in findings.table)


def _confirm(scores: Comparison, rank: int, margin: float, confidence: float) -> Confirmation:
    """Test with the task score, larger is better, whether another rank is ahead."""
    others = scores.others(rank)
    leads = {other: scores.difference(other, rank) for other in others}
    bound, against = max((leads[other].upper(len(others), confidence), other) for other in others)
    # Dunnett's value holds for lower bounds as for upper ones, so the differences can be reversed.
    ahead = [
        other
        for other in others
        if leads[other].mean > margin
        and -scores.difference(rank, other).upper(len(others), confidence) > 0
    ]
    if ahead:
        leader = max(ahead, key=lambda other: leads[other].mean)
        return Confirmation(
            metric="score",
            margin=margin,
            status="contradicts",
            bound=bound,
            against=against,
            leader=leader,
            lead=leads[leader].mean,
        )
    return Confirmation(
        metric="score",
        margin=margin,
        status="confirms" if bound <= margin else "cannot tell",
        bound=bound,
        against=against,
    )
