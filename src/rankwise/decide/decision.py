"""What a decision says, and its JSON form."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Interval = tuple[float, float]
Verdict = Literal["raise the rank", "overfitting", "rank suffices", "not a rank problem", "open"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much better (positive) a rank is than the next smaller one. Intervals are for this one comparison, two-sided.

    Attributes:
        rank: the smaller rank.
        loss: how much held-out loss fell, nats per example, where there are losses.
        loss_ci: its interval.
        score: how much better the task score is, or the metric compared where that is no loss.
        score_ci: its interval.
        per_doubling: gain in the metric compared, for each doubling of the rank.
        per_doubling_ci: its interval.
    """

    rank: int
    loss: float | None
    loss_ci: Interval | None
    score: float | None
    score_ci: Interval | None
    per_doubling: float
    per_doubling_ci: Interval


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Whether a second metric agrees with the choice.

    Attributes:
        metric: its name.
        margin: what the chosen rank may be worse in it.
        status: "confirms" (shown to be within the margin), "contradicts" (shown to be worse, and seen to be so by more
            than the margin) or "cannot tell".
        bound: upper bound of how much the best other rank is ahead, simultaneous over ranks.
        against: the rank that sets the bound.
        reason: a sentence.
    """

    metric: str
    margin: float
    status: Literal["confirms", "contradicts", "cannot tell"]
    bound: float
    against: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A rank against the next larger one: does it underfit?

    Attributes:
        rank: the smaller rank.
        next_rank: the larger one.
        verdict: "raise the rank", "overfitting", "rank suffices", "not a rank problem" or "open".
        held_out_gap: how much the larger rank is better on held-out examples, in units of the metric.
        held_out_ci: its two-sided interval.
        train_gap: how much the larger rank's training loss is lower over the last third of the steps, nats; None where
            training losses are not known.
        train_ci: its two-sided interval.
        train_gap_by_third: the same over each third of the steps.
        reason: a sentence with the numbers.
    """

    rank: int
    next_rank: int
    verdict: Verdict
    held_out_gap: float
    held_out_ci: Interval
    train_gap: float | None
    train_ci: Interval | None
    train_gap_by_third: tuple[float, float, float] | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """One rank's line in the table. Figures that were not measured are None.

    Attributes:
        rank: the rank.
        seeds: trials that count, at the rank's own learning rate.
        diverged: trials whose loss was not finite; a learning rate at which one did is out.
        learning_rate: the best of those tried for this rank.
        loss_mean: held-out loss, nats per example, with its interval.
        score_mean: task score (accuracy, or the metric compared where that is no loss), with its interval.
        trainable_params: adapter entries and those of modules trained in full.
        adapter_bytes: size of the adapter file.
        train_seconds: median of the trials' training loops, each as if it had trained alone.
        pack_seconds: the same of the packs that they trained in, shared by all trials of a pack.
        pack_size: trials in the largest pack.
        peak_memory_bytes: largest of the trials.
        worst_difference: upper bound of how much worse than the best other rank this one is (its loss minus that
            rank's), simultaneous over ranks.
        non_inferior: that bound is within the margin.
        gain_over_previous: against the next smaller rank.
    """

    rank: int
    seeds: int
    diverged: int = 0
    learning_rate: float | None = None
    loss_mean: float | None = None
    loss_ci: Interval | None = None
    score_mean: float | None = None
    score_ci: Interval | None = None
    trainable_params: int | None = None
    adapter_bytes: int | None = None
    train_seconds: float | None = None
    pack_seconds: float | None = None
    pack_size: int | None = None
    peak_memory_bytes: int | None = None
    worst_difference: float | None = None
    non_inferior: bool = False
    gain_over_previous: Gain | None = None


@dataclass(frozen=True, kw_only=True)
class Next:
    """What to run to settle an open question.

    Attributes:
        seeds: seeds per rank, those already run included.
        held_out_examples: held-out examples, those already there included.
        rank: the rank that would then be selected, if the differences seen stay as they are.
        estimated_seconds: training time of the additional trials, where times are known.
        advice: the same as a sentence.
    """

    seeds: int
    held_out_examples: int
    rank: int
    estimated_seconds: float | None
    advice: str


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """The chosen adapter on the part of the data that no decision saw.

    Attributes:
        trial: name of the trial that was scored.
        examples: size of the test part.
        loss: nats per example, with an interval over examples.
        score: task score, with an interval over examples.
    """

    __test__ = False  # the name is not a test's

    trial: str
    examples: int
    loss: float
    loss_ci: Interval
    score: float
    score_ci: Interval


@dataclass(frozen=True, kw_only=True)
class RankPattern:
    """The cut whose layers have ranks of their own, against the one of the chosen rank with as many entries.

    Attributes:
        ranks: of each layer, by its name in the base model.
        entries: of all factors A and B, at most.
        gain: how much lower its held-out loss is, nats per example, over all seeds' cuts.
        gain_ci: its two-sided interval.
        better: that interval lies above zero; the cut is then offered beside the chosen adapter.
        reason: a sentence with the numbers.
    """

    ranks: Mapping[str, int]
    entries: int
    gain: float
    gain_ci: Interval
    better: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the evidence supports: a rank, or "undetermined" with what to run next.

    Attributes:
        verdict: "selected" or "undetermined".
        rank: the smallest rank not worse than any other by more than the margin; None if undetermined.
        metric: what is compared.
        margin: what a smaller rank may cost, in units of the metric (nats per example for the loss).
        confidence: of the decision, simultaneous over ranks.
        reason: a sentence.
        next: what to run to settle it; None if selected.
        warnings: what a reader should know before relying on this.
        table: one row per rank, ascending.
        confirmation: whether a second metric agrees; None where there is none, or no rank was selected.
        diagnosis: each rank against the next larger one.
        detectable_difference: the smallest margin at which this evidence would have cleared, in four cases of five, a
            rank that equals the best; None where nothing tells how far a mean may be off.
        question: "train": which rank to train at; "keep": which rank to cut trained adapters to.
        trained_at: where the question is which rank to keep, the rank that was trained.
        rank_pattern: a cut with a rank for each layer, where one was tried.
        test: the chosen adapter's score on unseen data, where there is such a part.
    """

    verdict: Literal["selected", "undetermined"]
    rank: int | None
    metric: str
    margin: float
    confidence: float
    reason: str
    next: Next | None
    warnings: tuple[str, ...]
    table: tuple[RankRow, ...]
    confirmation: Confirmation | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
    detectable_difference: float | None = None
    question: Literal["train", "keep"] = "train"
    trained_at: int | None = None
    rank_pattern: RankPattern | None = None
    test: TestScore | None = None

    def row(self, rank: int) -> RankRow:
        """Return the table's row of a rank."""
        return next(row for row in self.table if row.rank == rank)

    def with_costs(self, costs: Mapping[int, Mapping[str, Any]]) -> "Decision":
        """Return the decision with each rank's measured costs in its row, and the cost of what to run next."""
        table = tuple(replace(row, **costs.get(row.rank, {})) for row in self.table)
        times = [row.train_seconds for row in table if row.train_seconds is not None]
        following = self.next
        # A cut has no time of its own.
        if following is not None and (
            len(times) == len(table) or (times and self.question == "keep")
        ):
            more = sum(
                (row.train_seconds or 0.0) * max(0, following.seeds - row.seeds) for row in table
            )
            advice = (
                f"{following.advice} About {max(1, round(more / 60))} min of training."
                if more
                else following.advice
            )
            following = replace(following, estimated_seconds=more, advice=advice)
        return replace(self, table=table, next=following)

    def as_dict(self) -> dict[str, Any]:
        """Return ``decision.json`` as JSON values; what is not finite becomes null."""
        return _json_value(asdict(self))


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
