"""What the evidence says about every rank: comparisons, bounds and figures, before any choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log2
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rankwise.checks import check_number
from rankwise.decide.decision import Diagnosis, Gain, Interval, RankRow
from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import LEAST_GAIN, ChanceLoss, RankResults, chance_losses
from rankwise.decide.metrics import SHARE_MARGIN, default_margin
from rankwise.decide.pairwise import Bound, Comparison, compare
from rankwise.decide.power import detectable_difference


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """How to decide: what is compared, what a smaller rank may cost, and what is known beforehand.

    The fields are the arguments of `rankwise.select`.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """All that a decision rests on. Figures that not every caller needs are computed on first use.

    Attributes:
        rule: the rule that was asked for.
        margin: the rule's margin, or the metric's default.
        results: all ranks, ascending, including those of which every trial diverged.
        histories: training losses, one row per step; None if they are not known.
        measured: measured costs of each rank, by the names of `RankRow`'s fields.
        comparison: the ranks compared in the metric that decides; smaller is better.
        losses: the ranks compared by held-out loss, where there are losses.
        scores: the ranks compared by task score, where there are scores.
        bounds: each rank against the best other rank; empty if the noise is not known.
        above_chance: each rank's loss against chance level; empty if that is not known.
    """

    rule: Rule
    margin: float
    results: tuple[RankResults, ...]
    histories: pd.DataFrame | None
    measured: Mapping[int, Mapping[str, Any]]
    comparison: Comparison
    losses: Comparison | None
    scores: Comparison | None
    bounds: Mapping[int, Bound]
    above_chance: Mapping[int, AboveChance]

    @property
    def alive(self) -> list[RankResults]:
        """Ranks with a learning rate at which no trial diverged."""
        return [one for one in self.results if one.seeds]

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
    def examples(self) -> int:
        """Number of held-out examples; 1 where results are aggregates."""
        return max(one.examples.size for one in self.results)

    def is_shown_worse(self, rank: int) -> bool:
        """Whether a rank is shown to be worse than another by more than the margin."""
        return self.comparison.is_shown_worse(rank, self.margin, self.rule.confidence)

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

    @cached_property
    def detectable_difference(self) -> float | None:
        """The smallest margin that this evidence can resolve."""
        return detectable_difference(self.comparison, self.rule.confidence)


def analyse(
    results: Sequence[RankResults],
    rule: Rule,
    histories: pd.DataFrame | None = None,
    measured: Mapping[int, Mapping[str, Any]] | None = None,
) -> Findings:
    """Compare all ranks under a rule.

    Args:
        results: as `rankwise.decide.evidence.read_rank_results` returns them.
        rule: how to decide.
        histories: training losses, see `rankwise.select`.
        measured: measured costs of each rank, by the names of `RankRow`'s fields.
    """
    alive = [one for one in results if one.seeds]
    by_loss = rule.metric == "loss"
    comparison = compare(alive, "cost", rule.noise)
    assert comparison is not None  # every rank has costs
    # A stated noise is that of the metric compared.
    losses = comparison if by_loss else compare(alive, "loss")
    scores = compare(alive, "score", None if by_loss else rule.noise)
    bounds: dict[int, Bound] = {}
    if comparison.noise_is_known:
        bounds = {one.rank: comparison.upper_bound(one.rank, rule.confidence) for one in alive}
    margin = rule.margin
    if margin is None:
        margin = default_margin(rule.metric, np.concatenate([one.cost.ravel() for one in results]))
    return Findings(
        rule=rule,
        margin=margin,
        results=tuple(results),
        histories=histories,
        measured=measured or {},
        comparison=comparison,
        losses=losses,
        scores=scores,
        bounds=bounds,
        above_chance=_above_chance(alive, rule),
    )


def _above_chance(alive: Sequence[RankResults], rule: Rule) -> dict[int, AboveChance]:
    if rule.chance_loss is None or not alive:
        return {}
    chance = chance_losses(rule.chance_loss, alive[0].examples)  # all have the same examples
    over = [replace(one, loss=None if one.loss is None else one.loss - chance) for one in alive]
    losses = compare(over, "loss", rule.noise if rule.metric == "loss" else None)
    if losses is None:
        return {}
    least = LEAST_GAIN * float(np.mean(chance))
    above: dict[int, AboveChance] = {}
    for rank in losses.ranks:
        upper = losses.mean_interval(rank, rule.confidence)[1]
        above[rank] = AboveChance(losses.mean(rank), upper + least)
    return above


def _row(findings: Findings, one: RankResults) -> RankRow:
    measured = findings.measured.get(one.rank, {})
    if not one.seeds:
        return RankRow(rank=one.rank, seeds=0, diverged=one.diverged, **measured)
    confidence = findings.rule.confidence
    loss_mean, loss_ci = _mean(findings.losses, one.rank, confidence)
    score_mean, score_ci = _mean(findings.scores, one.rank, confidence)
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


def _mean(
    values: Comparison | None, rank: int, confidence: float
) -> tuple[float | None, Interval | None]:
    if values is None:
        return None, None
    interval = values.mean_interval(rank, confidence) if values.noise_is_known else None
    return values.mean(rank), interval


def _gain(findings: Findings, rank: int) -> Gain | None:
    """Return a rank's gain over the next smaller one, if there is one and the noise is known."""
    smaller_ranks = [other for other in findings.comparison.ranks if other < rank]
    if not smaller_ranks or not findings.comparison.noise_is_known:
        return None
    smaller, confidence = smaller_ranks[-1], findings.rule.confidence
    losses, scores = findings.losses, findings.scores
    gain = findings.comparison.difference(smaller, rank)
    low, high = gain.interval(confidence)
    loss = score = None
    if losses is not None:
        loss = losses.difference(smaller, rank)
    if scores is not None:
        # Another metric stands in the scores' place; its costs know which direction is better.
        score = scores.difference(rank, smaller) if findings.rule.metric == "loss" else gain
    doublings = log2(rank / smaller)
    return Gain(
        rank=smaller,
        loss=loss.mean if loss else None,
        loss_ci=loss.interval(confidence) if loss and losses and losses.noise_is_known else None,
        score=score.mean if score else None,
        score_ci=score.interval(confidence) if score and scores and scores.noise_is_known else None,
        per_doubling=gain.mean / doublings,
        per_doubling_ci=(low / doublings, high / doublings),
    )
