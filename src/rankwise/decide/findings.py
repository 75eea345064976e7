"""The findings: how all ranks compare under a rule, and the rank that follows, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, log2
from typing import Any

import numpy as np
import pandas as pd

from rankwise.checks import check_number
from rankwise.decide.clearing import Bound, Clearing
from rankwise.decide.decision import (
    Agreement,
    Confirmation,
    Diagnosis,
    Gain,
    Interval,
    Need,
    Next,
    RankRow,
)
from rankwise.decide.diagnose import diagnose
from rankwise.decide.evidence import ChanceLoss, RankResults
from rankwise.decide.learnt import Learnt, learnt_by_trial
from rankwise.decide.metrics import SHARE_MARGIN, default_margin
from rankwise.decide.needs import FurtherTrial, find_needs
from rankwise.decide.pairwise import Comparison, compare
from rankwise.decide.power import next_steps
from rankwise.decide.seed_prior import SeedPrior, seed_prior
from rankwise.decide.variance import LEAST_EXAMPLES

NEARLY_AS_SURE = 1.1  # a smaller rank is recommended if its doubt is at most so many times as large


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """The rule of a decision; its fields are the arguments of `rankwise.select`.

    Attributes:
        looks: how often the evidence is looked at, each time with the chance to stop. The allowed
            share of errors is divided among the looks.

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
    no_prior: bool = False
    looks: int = 1

    def __post_init__(self) -> None:
        for name in ("margin", "noise", "score_margin", "chance_loss"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, pd.Series):
                object.__setattr__(self, name, check_number(name, value, above=0))
        confidence = check_number("confidence", self.confidence, above=0, below=1)
        object.__setattr__(self, "confidence", confidence)

    @property
    def confidence_of_a_look(self) -> float:
        """The confidence of each look at the evidence; all together have the stated one."""
        return 1 - (1 - self.confidence) / self.looks

    @property
    def prior(self) -> SeedPrior | None:
        """What is known of seeds from other tasks; None where it does not apply."""
        applies = self.metric == "loss" and self.noise is None and not self.no_prior
        return seed_prior() if applies else None


@dataclass(frozen=True, eq=False)
class Findings:
    """All ranks compared under a rule. Each figure is computed when it is first used.

    Attributes:
        results: all ranks, ascending, including those of which every trial diverged.
        rule: how to decide.
        histories: training losses, see `rankwise.select`.
        measured: measured costs of each rank, by the names of `RankRow`'s fields.
        further: a trial that was trained after the decision; it decides nothing about ranks.
    """

    results: Sequence[RankResults]
    rule: Rule
    histories: pd.DataFrame | None = None
    measured: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    further: FurtherTrial | None = None

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
        rule = self.rule
        comparison = compare(self.alive, "cost", rule.noise, rule.prior, self.fixed_seeds)
        assert comparison is not None  # every rank has costs
        return comparison

    @property
    def fixed_seeds(self) -> bool:
        """Whether the question is about the adapters that exist, so that examples alone vary."""
        rule = self.rule
        return rule.trained_at is not None and rule.noise is None and self.examples > 1

    @cached_property
    def losses(self) -> Comparison | None:
        """The ranks compared by held-out loss; None without losses."""
        # A stated noise is that of the metric that decides.
        if self.by_loss:
            return self.comparison
        return compare(self.alive, "loss", fixed_seeds=self.fixed_seeds)

    @cached_property
    def scores(self) -> Comparison | None:
        """The ranks compared by task score, larger is better; None without scores."""
        noise = None if self.by_loss else self.rule.noise
        return compare(self.alive, "score", noise, fixed_seeds=self.fixed_seeds)

    @property
    def too_few_examples(self) -> bool:
        """Whether there are examples, but too few to show how much they vary."""
        per_example = all(one.per_example for one in self.results)
        return per_example and self.examples < LEAST_EXAMPLES

    @cached_property
    def clearing(self) -> Clearing:
        """All ranks judged together, or in each seed's adapters where seeds are not random."""
        if self.too_few_examples:
            return Clearing([])
        return Clearing(self.comparison.by_seed() if self.fixed_seeds else [self.comparison])

    @cached_property
    def bounds(self) -> dict[int, Bound]:
        """Each rank against the best other rank; empty if the noise is not known."""
        return self.clearing.bounds(self.rule.confidence_of_a_look)

    @cached_property
    def confidences(self) -> dict[int, float]:
        """The highest confidence at which each rank is cleared; empty if the noise is not known."""
        confidences = {}
        for rank, confidence in self.clearing.confidences(self.margin).items():
            shared = max(0.0, 1 - (1 - confidence) * self.rule.looks)
            # The levels between which it was interpolated are near; the verdict is exact.
            is_cleared = self.bounds[rank].upper <= self.margin
            end = max if is_cleared else min
            confidences[rank] = end(shared, self.rule.confidence)
        return confidences

    @cached_property
    def learnt(self) -> dict[int, list[Learnt]]:
        """Each adapter's loss against chance level, by rank; empty if that is not known."""
        compared, chance = self.losses, self.rule.chance_loss
        if chance is None or compared is None or not self.alive:
            return {}
        noise = self.rule.noise if self.by_loss else None
        # All ranks have the same examples.
        examples = self.alive[0].examples
        return learnt_by_trial(compared, examples, chance, self.rule.confidence, noise)

    @property
    def nothing_learnt(self) -> bool:
        """Whether chance level is known and no adapter is shown to be below it."""
        return bool(self.learnt) and not any(
            one.is_shown for trials in self.learnt.values() for one in trials
        )

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

    @cached_property
    def recommended(self) -> int | None:
        """The rank to use, for now if none fits; None if nothing was learnt or none has trained.

        Without a rank that fits it is the smallest whose confidence is near the highest; where no
        confidence is known, the smallest whose mean is within the margin of the best.
        """
        if self.nothing_learnt or not self.alive:
            return None
        if self.rank is not None:
            return self.rank
        confidences = self.confidences
        if confidences and max(confidences.values()) > 0:
            return smallest_of_the_surest(confidences)
        means = {rank: self.comparison.mean(rank) for rank in self.comparison.ranks}
        limit = min(means.values()) + self.margin
        return min(rank for rank, mean in means.items() if mean <= limit)

    def is_shown_worse(self, rank: int) -> bool:
        """Whether a rank is shown to be worse than another by more than the margin."""
        if self.too_few_examples:
            return False
        return self.comparison.is_shown_worse(rank, self.margin, self.rule.confidence_of_a_look)

    @cached_property
    def confirmation(self) -> Confirmation | None:
        """Whether the score agrees with the loss; None without a rank or a score that can tell."""
        scores = None if all(one.score_is_loss for one in self.alive) else self.scores
        if self.rank is None or not self.by_loss or scores is None or not scores.noise_is_known:
            return None
        return _confirm(scores, self.rank, self.rule.score_margin, self.rule.confidence)

    @cached_property
    def next(self) -> list[Next]:
        """Steps that may settle an open question, those that bring most for a minute first."""
        # More of the same does not help where nothing was learnt or no bound is finite.
        finite = any(isfinite(bound.upper) for bound in self.bounds.values())
        if self.rank is not None or self.recommended is None or not finite:
            return []
        seconds = {row.rank: row.train_seconds for row in self.table}
        level = self.rule.confidence_of_a_look
        bound = self.bounds[self.recommended].upper
        steps = next_steps(self.comparison, self.recommended, self.margin, level, seconds)
        wider = Next(
            action="margin",
            ranks=(self.recommended,),
            seeds=max(len(one.seeds) for one in self.alive),
            held_out_examples=self.examples,
            margin=bound,
            rank=self.recommended,
            probability=1.0,
            estimated_seconds=0.0,
        )
        return [*steps, wider]

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
    def needs(self) -> tuple[Need, ...]:
        """Whether the task is short of rank, of another rate, or of steps.

        Empty where nothing was learnt, or nothing shows how much results vary.
        """
        rule, rank = self.rule, self.recommended
        if rank is None or self.too_few_examples or not self.comparison.noise_is_known:
            return ()
        return find_needs(
            self.alive,
            rank,
            self.margin,
            rule.confidence,
            noise=rule.noise,
            prior=rule.prior,
            trained_at=rule.trained_at,
            further=self.further,
        )


def smallest_of_the_surest(confidences: Mapping[int, float]) -> int:
    """Return the smallest rank whose confidence is near the highest; see `NEARLY_AS_SURE`."""
    most_doubt = NEARLY_AS_SURE * (1 - max(confidences.values()))
    return min(rank for rank, confidence in confidences.items() if 1 - confidence <= most_doubt)


def _confirm(scores: Comparison, rank: int, margin: float, confidence: float) -> Confirmation:
    others = scores.others(rank)
    leads = {other: scores.difference(other, rank) for other in others}
    # The rank must pass against every other, so each comparison has the full level: an
    # intersection-union test (Berger 1982, Technometrics 24, 295).
    bound, against = max((leads[other].upper(1, confidence), other) for other in others)
    # That some other rank leads is one claim among many, so Dunnett's value is needed.
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
        confidence_within_margin=findings.confidences.get(one.rank),
        margin_reached=None if bound is None else max(0.0, bound.upper),
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
