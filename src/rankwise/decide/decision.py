"""What a decision says, and its JSON form."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much held-out loss fell (positive: better) from the next smaller rank to this one.

    Attributes:
        rank: the smaller rank.
        loss: difference of means, nats per example.
        loss_ci: its interval at the decision's confidence, two-sided, for this one comparison.
        score: gain in the task score.
        score_ci: its interval.
    """

    rank: int
    loss: float
    loss_ci: Interval
    score: float
    score_ci: Interval


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """One rank's line in the table. Figures that were not measured are None.

    Attributes:
        rank: the rank.
        seeds: trials that count, at the rank's own learning rate.
        diverged: trials whose loss was not finite; a learning rate at which one did is out.
        learning_rate: the best of those tried for this rank.
        loss_mean: held-out loss, nats per example, with its interval.
        score_mean: task score (accuracy), with its interval.
        trainable_params: adapter entries and those of modules trained in full.
        adapter_bytes: size of the adapter file.
        train_seconds: median of the trials' training loops.
        peak_memory_bytes: largest of the trials.
        worst_difference: upper bound of this rank's loss minus the best other rank's, simultaneous over ranks.
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
class Decision:
    """What the evidence supports: a rank, or "undetermined" with what to run next.

    Attributes:
        verdict: "selected" or "undetermined".
        rank: the smallest rank not worse than any other by more than the margin; None if undetermined.
        metric: what is compared.
        margin: loss that a smaller rank may cost, nats per example.
        confidence: of the decision, simultaneous over ranks.
        reason: a sentence.
        next: what to run to settle it; None if selected.
        warnings: what a reader should know before relying on this.
        table: one row per rank, ascending.
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
    test: TestScore | None = field(default=None)

    def row(self, rank: int) -> RankRow:
        """Return the table's row of a rank."""
        return next(row for row in self.table if row.rank == rank)

    def with_costs(self, costs: Mapping[int, Mapping[str, Any]]) -> "Decision":
        """Return the decision with each rank's measured costs in its row, and the cost of what to run next."""
        table = tuple(replace(row, **costs.get(row.rank, {})) for row in self.table)
        times = [row.train_seconds for row in table if row.train_seconds is not None]
        following = self.next
        if following is not None and len(times) == len(table):
            more = sum(seconds * max(0, following.seeds - row.seeds) for seconds, row in zip(times, table, strict=True))
            advice = (
                f"{following.advice} About {max(1, round(more / 60))} min of training." if more else following.advice
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
