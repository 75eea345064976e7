"""The records that a decision consists of, and its JSON form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rankwise.formatting import Interval as Interval
from rankwise.formatting import json_value

Verdict = Literal["raise the rank", "overfitting", "rank suffices", "not a rank problem", "open"]
Agreement = Literal["confirms", "contradicts", "cannot tell"]
NeedName = Literal["more rank", "another rate", "more steps or data"]
NeedState = Literal["shown", "ruled out", "open", "not known"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much better (positive) a rank is than the next smaller one.

    Intervals (``_ci``) are two-sided and hold for this one comparison.

    Attributes:
        rank: the smaller rank.
        loss: fall of the held-out loss, nats per example, where there are losses.
        score: rise of the task score, or the gain in the metric compared if that is not the loss.
        per_doubling: gain in the metric compared for each doubling of the rank.
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
        metric: the second metric.
        margin: how much worse the chosen rank may be in it.
        status: "confirms" (shown to be within the margin), "contradicts" (shown to be worse, and
            worse on average by more than the margin) or "cannot tell".
        bound: upper bound of the best other rank's lead, simultaneous over ranks.
        against: the rank that sets the bound.
        leader: the rank with the largest lead among those shown to be better, if "contradicts".
        lead: average lead of ``leader``.
        reason: the same as a sentence.
    """

    metric: str
    margin: float
    status: Agreement
    bound: float
    against: int
    leader: int | None = None
    lead: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Whether a rank underfits, judged against the next larger rank.

    Attributes:
        next_rank: the larger rank.
        held_out_gap: how much better the larger rank is on held-out examples, in the metric's unit.
        held_out_ci: two-sided interval of ``held_out_gap``.
        train_gap: how much lower the larger rank's training loss is over the last third of the
            steps, nats; None where training losses are not known.
        train_ci: two-sided interval of ``train_gap``.
        train_gap_by_third: the training gap over each third of the steps.
        reason: the same as sentences.
    """

    rank: int
    next_rank: int
    verdict: Verdict
    held_out_gap: float
    held_out_ci: Interval
    train_gap: float | None = None
    train_ci: Interval | None = None
    train_gap_by_third: tuple[float, float, float] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Whether a task is short of rank, of another learning rate, or of steps.

    Attributes:
        state: "shown" (the gain is shown to be above zero, and is above the margin on average),
            "ruled out" (the gain is shown to be within the margin), "open" (the evidence does not
            settle it) or "not known" (there is no evidence).
        gain: fall of the metric compared, of which smaller is better, by the last step tried in
            this direction, such as from a rank to the next larger one.
        gain_ci: lower and upper bound of ``gain``, each at the decision's confidence.
        rank: the rank that ``gain`` is measured at; for "more rank" the smaller of the two.
        start: rank, learning rate or number of steps before the last step; None if not known.
        end: the same after it.
        edge: for "another rate", the side on which no further rate was tried; None in the middle.
        reason: the same as sentences.
    """

    name: NeedName
    state: NeedState
    gain: float | None = None
    gain_ci: Interval | None = None
    rank: int | None = None
    start: float | None = None
    end: float | None = None
    edge: Literal["lowest", "highest"] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How much an adapter can hold at most, beside what there is to learn.

    Attributes:
        rank: rank of the adapter.
        adapter_bits: two bits for each trained entry (Allen-Zhu and Li 2024, arXiv 2404.05405).
        data_bits: about the bits that the training data hold for a model that has learnt nothing:
            its chance-level loss, summed over examples or over the tokens to learn.
        reason: the same as a sentence.
    """

    rank: int
    adapter_bits: float
    data_bits: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """One rank's row in the table. Figures that were not measured are None.

    Attributes:
        seeds: number of trials that count, at the rank's own learning rate.
        diverged: number of trials whose loss was not finite; their learning rate is excluded.
        learning_rate: the best of the rates tried for this rank.
        loss_mean: held-out loss, nats per example.
        score_mean: task score, or the metric compared if that is not the loss.
        trainable_params: number of adapter entries and of entries in modules trained in full.
        train_seconds: median training time of a trial, as if it had trained alone.
        pack_seconds: median training time of the packs that the trials trained in.
        pack_size: number of trials in the largest pack.
        peak_memory_bytes: largest peak memory of the trials.
        worst_difference: upper bound of how much worse this rank is than the best other rank, at
            the decision's confidence, which holds for all ranks together.
        non_inferior: whether that bound is within the margin, so that the rank is cleared.
        confidence_within_margin: the highest confidence at which the rank would be cleared.
        margin_reached: the smallest margin at which the rank would be cleared at the decision's
            confidence: ``worst_difference``, or 0 where that is negative.
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
    confidence_within_margin: float | None = None
    margin_reached: float | None = None
    gain_over_previous: Gain | None = None


@dataclass(frozen=True, kw_only=True)
class Next:
    """A step that may settle an open question.

    Attributes:
        action: "seeds" and "examples" add evidence, "rates" trains at other learning rates,
            "margin" accepts a wider margin.
        ranks: the ranks that it concerns.
        seeds: seeds of each of these ranks, including those already run.
        held_out_examples: held-out examples, including those already there.
        rank: the rank that would most likely be selected; None if that is not known.
        probability: chance that a rank is then selected, judged from the evidence so far.
        margin: margin of the decision; differs from the present one for "margin" only.
        estimated_seconds: training time of the additional trials, where times are known.
        advice: the same as sentences.
    """

    action: Literal["seeds", "examples", "rates", "margin"]
    ranks: tuple[int, ...]
    seeds: int
    held_out_examples: int
    margin: float
    rank: int | None = None
    probability: float | None = None
    estimated_seconds: float | None = None
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """The chosen adapter's results on the test part, which no decision sees.

    Attributes:
        trial: name of the trial that was scored.
        loss: mean loss, nats per example.
        loss_ci: interval of ``loss`` over examples.
        score: mean task score.
        adapter: SHA-256 of the weights that were scored; None in decisions of earlier versions.
    """

    __test__ = False  # pytest would collect the class by its name

    trial: str
    examples: int
    loss: float
    loss_ci: Interval
    score: float
    score_ci: Interval
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankPattern:
    """A truncated adapter with a rank for each layer, compared with the chosen rank at equal size.

    Attributes:
        ranks: rank of each layer, by the layer's name in the base model.
        entries: upper limit for the entries of all factors A and B.
        gain: how much lower its held-out loss is, nats per example, over all seeds.
        gain_ci: two-sided interval of ``gain``.
        better: whether that interval lies above zero; then ``best-rank-pattern/`` has the adapter.
        reason: the same as sentences.
    """

    ranks: Mapping[str, int]
    entries: int
    gain: float
    gain_ci: Interval
    better: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the evidence supports: a rank, or "undetermined" with what to run next.

    Attributes:
        rank: the smallest rank that is not worse than any other by more than the margin; None if
            undetermined.
        recommended: the rank to use: ``rank``, or the rank to use for now while that is
            undetermined; None only where nothing was learnt.
        confidence_reached: the highest confidence at which the recommended rank is cleared; None if
            the noise is not known.
        margin_reached: the smallest margin at which the recommended rank is cleared at the stated
            confidence.
        metric: the metric compared.
        margin: what a smaller rank may cost, in the metric's unit (for the loss, nats per example).
        confidence: confidence asked for; it holds for all ranks together.
        answer: the decision in a sentence or two.
        evidence: what was compared, over how many seeds and examples, and what the bound is.
        caveats: sentences to read before relying on the decision.
        next: steps that may settle an open question, those that bring most for a minute first.
        table: one row per rank, ascending.
        confirmation: whether a second metric agrees; None without one, or without a rank.
        detectable_difference: the smallest margin at which this evidence would clear, in four cases
            of five, a rank that equals the best; None if the noise is not known.
        question: "train" (which rank to train at) or "keep" (which rank to truncate trained
            adapters to).
        trained_at: the rank that was trained, if the question is which rank to keep.
        needs: whether the task is short of rank, of another rate, or of steps or data; empty where
            nothing was learnt or the noise is not known.
        short_of: the need whose last step gained most of those shown; "none of these" if all three
            are ruled out; otherwise "not known".
        capacity: the bound by the adapter's size; None where the data's bits are not known.
    """

    verdict: Literal["selected", "undetermined"]
    rank: int | None
    metric: str
    margin: float
    confidence: float
    answer: str
    evidence: str
    caveats: tuple[str, ...]
    next: tuple[Next, ...]
    table: tuple[RankRow, ...]
    confirmation: Confirmation | None = None
    diagnosis: tuple[Diagnosis, ...] = ()
    detectable_difference: float | None = None
    question: Literal["train", "keep"] = "train"
    trained_at: int | None = None
    rank_pattern: RankPattern | None = None
    test: TestScore | None = None
    recommended: int | None = None
    confidence_reached: float | None = None
    margin_reached: float | None = None
    needs: tuple[Need, ...] = ()
    short_of: NeedName | Literal["none of these", "not known"] = "not known"
    capacity: Capacity | None = None

    @property
    def provisional(self) -> bool:
        """Whether the recommended rank is one to use for now, short of the stated confidence."""
        return self.rank is None and self.recommended is not None

    def row(self, rank: int) -> RankRow:
        """Return the table's row of a rank."""
        return next(row for row in self.table if row.rank == rank)

    def as_dict(self) -> dict[str, Any]:
        """Return ``decision.json`` as JSON values; numbers that are not finite become null."""
        return json_value(asdict(self))
