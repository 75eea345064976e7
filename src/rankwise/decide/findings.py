"""The findings: how all ranks compare under a rule, and the rank that follows, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, log2
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rankwise.checks import check_number
from rankwise.decide.decision import (
    Agreement,
    Confirmation,
    Diagnosis,
    Gain,
    Interval,
    Next,
    RankRow,
)
from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, RankResults, chance_losses
from rankwise.decide.metrics import SHARE_MARGIN, default_margin
from rankwise.decide.pairwise import Bound, Comparison, compare
from rankwise.decide.power import next_step


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """The rule of a decision; its fields are the arguments of `rankwise.select`.

    Raises:
        RequestError: a number is not allowed.
    """

    metric: str = "loss"
    margin: float | None = None
    confidence: float = 0.95
    higher_is_better: bool | None = None
    noise: float | None = None
    score_margin: float = SHARE_MARGIN
    chance_loss: ChanceLoss | None = None
    trained_at: int | None = None

    def __post_init__(self) -> None:
        for name in ("margin", "noise", "score_margin", "chance_loss"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, pd.Series):
                object.__setattr__(self, name, check_number(name, value, above=0))
        confidence = check_number("confidence", self.confidence, above=0, below=1)
        object.__setattr__(self, "confidence", confidence)


class AboveChance(NamedTuple):
    """How far a rank's held-out loss lies above the chance-level loss, nats.

    Attributes:
        mean: negative if the loss is below.
        upper: upper end of the interval, plus the least gain that counts as one; negative if the
            rank is shown to have learnt something.
    """

    mean: float
    upper: float


@dataclass(frozen=True, eq=False)
class Findings:
    """All ranks compared under a rule. Each figure is computed when it is first used.

    Attributes:
        results: all ranks, ascending, including those of which every trial diverged.
        rule: how to decide.
        histories: training losses, see `rankwise.select`.
        measured: measured costs of each rank, by the names of `RankRow`'s fields.
    """

    results: Sequence[RankResults]
    rule: Rule
    histories: pd.DataFrame | None = None
    measured: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def alive(self) -> list[RankResults]:
        """Ranks with a learning rate at which no trial diverged."""
        return [one for one in self.results if one.seeds]

    @property
    def by_loss(self) -> bool:
        """Whether ranks are compared by held-out loss."""
        return self.rule.metric == "loss"

    @property
    def examples(self) -> int:
        """Number of held-out examples; 1 where results are aggregates."""
        return max(one.examples.size for one in self.results)

    @cached_property
    def margin(self) -> float:
        """The rule's margin, or the metric's default."""
        if self.rule.margin is not None:
            return self.rule.margin
        costs = np.concatenate([one.cost.ravel() for one in self.results])
        return default_margin(self.rule.metric, costs)

    @cached_property
    def comparison(self) -> Comparison:
        """The ranks compared in the metric that decides; smaller is better."""
        comparison = compare(self.alive, "cost", self.rule.noise)
        assert comparison is not None  # every rank has costs
        return comparison

    @cached_property
    def losses(self) -> Comparison | None:
        """The ranks compared by held-out loss; None without losses."""
        # A stated noise is that of the metric that decides.
        return self.comparison if self.by_loss else compare(self.alive, "loss")

    @cached_property
    def scores(self) -> Comparison | None:
        """The ranks compared by task score, larger is better; None without scores."""
        return compare(self.alive, "score", None if self.by_loss else self.rule.noise)

    @cached_property
    def bounds(self) -> dict[int, Bound]:
        """Each rank against the best other rank; empty if the noise is not known."""
        if not self.comparison.noise_is_known:
            return {}
        ranks, confidence = self.comparison.ranks, self.rule.confidence
        return {rank: self.comparison.upper_bound(rank, confidence) for rank in ranks}

    @cached_property
    def above_chance(self) -> dict[int, AboveChance]:
        """Each rank's loss against chance level; empty if that is not known."""
        compared, chance_loss = self.losses, self.rule.chance_loss
        if chance_loss is None or compared is None or not self.alive:
            return {}
        chance = chance_losses(chance_loss, self.alive[0].examples)  # all have the same examples
        over = {rank: losses - chance for rank, losses in compared.values.items()}
        losses = Comparison(over, compared.seeds, self.rule.noise if self.by_loss else None)
        least, confidence = LEAST_GAIN * float(np.mean(chance)), self.rule.confidence
        return {
            rank: AboveChance(losses.mean(rank), losses.mean_interval(rank, confidence)[1] + least)
            for rank in losses.ranks
        }

    @property
    def nothing_learnt(self) -> bool:
        """Whether chance level is known and no rank is shown to be below it."""
        uppers = [above.upper for above in self.above_chance.values()]
        return bool(uppers) and min(uppers) >= 0

    @property
    def fitting(self) -> list[int]:
        """Ranks shown to be within the margin of every other rank, ascending."""
        if self.nothing_learnt:
            return []
        return [rank for rank, bound in self.bounds.items() if bound.upper <= self.margin]

    @property
    def rank(self) -> int | None:
        """The smallest rank that fits; None if there is none."""
        return min(self.fitting, default=None)

    def is_shown_worse(self, rank: int) -> bool:
        """Whether a rank is shown to be worse than another by more than the margin."""
        return self.comparison.is_shown_worse(rank, self.margin, self.rule.confidence)

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """Whether the score agrees with the loss; None without a rank or a score that can tell."""
        scores = self.scores
        if self.rank is None or not self.by_loss or scores is None or not scores.noise_is_known:
            return None
        return _confirm(scores, self.rank, self.rule.score_margin, self.rule.confidence)

    @cached_property
    def next(self) -> Next | None:
        """What to run to settle an open question; None if a rank fits or nothing would."""
        # More of the same does not help where nothing was learnt or no bound is finite.
        finite = any(isfinite(bound.upper) for bound in self.bounds.values())
        if self.fitting or self.nothing_learnt or not finite:
            return None
        step = next_step(self.comparison, self.margin, self.rule.confidence)
        if step is None:
            return None
        return replace(step, estimated_seconds=_training_seconds(self, step.seeds))

    @cached_property
    def table(self) -> tuple[RankRow, ...]:
        """One row per rank."""
        return tuple(_row(self, one) for one in self.results)

    @cached_property
    def diagnosis(self) -> tuple[Diagnosis, ...]:
        """Each rank against the next larger one.

        Empty where nothing was learnt, and for truncated adapters, which were not trained.
        """
        if self.nothing_learnt or self.rule.trained_at is not None:
            return ()
        confidence = self.rule.confidence
        return tuple(diagnose(self.alive, self.comparison, self.histories, self.margin, confidence))


def _confirm(scores: Comparison, rank: int, margin: float, confidence: float) -> Confirmation:
    others = scores.others(rank)
    leads = {other: scores.difference(other, rank) for other in others}
    bound, against = max((leads[other].upper(len(others), confidence), other) for other in others)
    # Dunnett's value holds for lower bounds as for upper ones, so the differences can be reversed.
    ahead = {
        other: lead.mean
        for other, lead in leads.items()
        if lead.mean > margin and scores.difference(rank, other).upper(len(others), confidence) < 0
    }
    leader = max(ahead, key=ahead.__getitem__, default=None)
    status: Agreement = "contradicts"
    if leader is None:
        status = "confirms" if bound <= margin else "cannot tell"
    return Confirmation(
        metric="score",
        margin=margin,
        status=status,
        bound=bound,
        against=against,
        leader=leader,
        lead=None if leader is None else ahead[leader],
    )


def _training_seconds(findings: Findings, seeds: int) -> float | None:
    """Return the time of training up to this many seeds per rank; None if times are not known."""
    known = [row.train_seconds is not None for row in findings.table]
    # A truncated adapter needs no training, so the trained rank's time suffices.
    enough = all(known) if findings.rule.trained_at is None else any(known)
    if not enough:
        return None
    return sum((row.train_seconds or 0.0) * max(0, seeds - row.seeds) for row in findings.table)


def _row(findings: Findings, one: RankResults) -> RankRow:
    measured = findings.measured.get(one.rank, {})
    if not one.seeds:
        return RankRow(rank=one.rank, seeds=0, diverged=one.diverged, **measured)
    loss_mean, loss_ci = _mean(findings.losses, one.rank, findings.rule.confidence)
    score_mean, score_ci = _mean(findings.scores, one.rank, findings.rule.confidence)
    bound = findings.bounds.get(one.rank)
    return RankRow(
        rank=one.rank,
        seeds=len(one.seeds),
        diverged=one.diverged,
        learning_rate=one.learning_rate or None,
        loss_mean=loss_mean,
        loss_ci=loss_ci,
        score_mean=score_mean,
        score_ci=score_ci,
        worst_difference=None if bound is None else bound.upper,
        non_inferior=bound is not None and bound.upper <= findings.margin,
        gain_over_previous=_gain(findings, one.rank),
        **measured,
    )


Estimate = tuple[float | None, Interval | None]


def _mean(values: Comparison | None, rank: int, confidence: float) -> Estimate:
    if values is None:
        return None, None
    interval = values.mean_interval(rank, confidence) if values.noise_is_known else None
    return values.mean(rank), interval


def _difference(values: Comparison | None, rank: int, other: int, confidence: float) -> Estimate:
    if values is None:
        return None, None
    difference = values.difference(rank, other)
    return difference.mean, difference.interval(confidence) if values.noise_is_known else None


def _gain(findings: Findings, rank: int) -> Gain | None:
    """Return a rank's gain over the next smaller one, if there is one and the noise is known."""
    comparison, confidence = findings.comparison, findings.rule.confidence
    smaller = max((other for other in comparison.ranks if other < rank), default=None)
    if smaller is None or not comparison.noise_is_known:
        return None
    gain = comparison.difference(smaller, rank)
    low, high = gain.interval(confidence)
    loss, loss_ci = _difference(findings.losses, smaller, rank, confidence)
    score: float | None
    score_ci: Interval | None
    # A metric other than the loss stands in the score's place; costs know its direction.
    score, score_ci = gain.mean, (low, high)
    if findings.by_loss:
        score, score_ci = _difference(findings.scores, rank, smaller, confidence)
    doublings = log2(rank / smaller)
    return Gain(
        rank=smaller,
        loss=loss,
        loss_ci=loss_ci,
        score=score,
        score_ci=score_ci,
        per_doubling=gain.mean / doublings,
        per_doubling_ci=(low / doublings, high / doublings),
    )
