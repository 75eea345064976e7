"""Rank, rate or steps: which of the three a task is short of, from the evidence of a sweep.

Each question is about the last step in one direction: from the second largest rank to the largest,
from the neighbouring learning rate to the chosen one, from the sweep's number of steps to twice as
many. Differences are paired over seeds and held-out examples (`rankwise.decide.pairwise`); how much
seeds matter is estimated from all trials together. Each answer holds for itself at the decision's
confidence. docs/decision.md states the rules.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Literal

import numpy as np
import scipy

from rankwise.decide.decision import Capacity, Need, NeedName, NeedState
from rankwise.decide.evidence import RankResults
from rankwise.decide.pairwise import Comparison, Difference
from rankwise.decide.seed_prior import SeedPrior

BITS_PER_ENTRY = 2.0
"""Bits that a trained entry can hold: Allen-Zhu and Li 2024, arXiv 2404.05405."""

Cell = tuple[int, float, int]  # rank, learning rate, optimizer steps; 0 for those of the sweep


@dataclass(frozen=True)
class FurtherTrial:
    """One trial that was trained after the decision, to tell rank and steps apart.

    Attributes:
        results: its rank's results, this trial alone; without seeds if it diverged.
        steps: its number of optimizer steps.
        sweep_steps: the same of the sweep's trials.
    """

    results: RankResults
    steps: int
    sweep_steps: int

    @property
    def has_more_steps(self) -> bool:
        """Whether it was trained longer; otherwise it is a trial of the largest rank."""
        return self.steps > self.sweep_steps


@dataclass(frozen=True)
class _Question:
    """A need, and the pairs of cells whose difference answers it, the best of them."""

    need: Need
    pairs: tuple[tuple[Cell, Cell], ...] = ()


def find_needs(
    results: Sequence[RankResults],
    rank: int,
    margin: float,
    confidence: float,
    *,
    noise: float | None = None,
    prior: SeedPrior | None = None,
    trained_at: int | None = None,
    further: FurtherTrial | None = None,
) -> tuple[Need, ...]:
    """Answer for each of the three whether a task is short of it, still without sentences.

    Args:
        results: ranks with usable trials, ascending.
        rank: the recommended rank.
        margin: a gain within the margin counts as none.
        confidence: confidence of each answer.
        noise: standard deviation over seeds of one trial's mean, if known.
        prior: how much seeds matter elsewhere, if the metric compared is the loss.
        trained_at: the only rank that was trained, if the others are truncated adapters.
        further: the trial that was trained after the decision, if there is one.
    """
    cells = _cells(results, further)
    numbers = {cell: number for number, cell in enumerate(cells)}
    compared = Comparison(
        {numbers[cell]: values for cell, (_, values) in cells.items()},
        {numbers[cell]: seeds for cell, (seeds, _) in cells.items()},
        noise,
        prior,
    )
    questions = [
        _about_rank(results, further),
        _about_rate(results, trained_at or rank, cells),
        _about_steps(further),
    ]

    def gain(pair: tuple[Cell, Cell]) -> Difference:
        return compared.difference(numbers[pair[0]], numbers[pair[1]])

    needs = [_answer(question, gain, margin, confidence) for question in questions]
    if trained_at is not None and needs[0].state == "shown":
        # What a truncation loses, training at its rank may keep.
        needs[0] = Need(name="more rank", state="not known")
    return tuple(needs)


def short_of(needs: Sequence[Need]) -> NeedName | Literal["none of these", "not known"]:
    """Return the need shown to gain most, or what holds if none is shown."""
    shown = [need for need in needs if need.state == "shown"]
    if shown:
        return max(shown, key=lambda need: need.gain or 0.0).name
    is_none = bool(needs) and all(need.state == "ruled out" for need in needs)
    return "none of these" if is_none else "not known"


def capacity(rank: int, entries: int, units: float, chance_loss: float) -> Capacity:
    """Return the bound by an adapter's size.

    Args:
        rank: the adapter's rank.
        entries: number of its trained entries.
        units: number of training examples, or of tokens to learn, over which losses are means.
        chance_loss: loss of a model that has learnt nothing, nats per unit.
    """
    return Capacity(
        rank=rank,
        adapter_bits=BITS_PER_ENTRY * entries,
        data_bits=units * chance_loss / float(np.log(2)),
    )


def _cells(
    results: Sequence[RankResults], further: FurtherTrial | None
) -> dict[Cell, tuple[tuple[int, ...], np.ndarray]]:
    """Return seeds, (S,), and costs, (S, N), of all that was trained on the same examples."""
    cells: dict[Cell, tuple[tuple[int, ...], np.ndarray]] = {}
    for one in results:
        by_rate: Mapping[float, tuple[tuple[int, ...], np.ndarray]] = one.cost_by_rate
        for rate, (seeds, cost) in by_rate.items():
            if cost.shape[1] == one.examples.size and np.isfinite(cost).all():
                cells[one.rank, rate, 0] = seeds, cost
        if one.learning_rate is not None:
            cells[one.rank, one.learning_rate, 0] = one.seeds, one.cost
    if further is not None and further.results.learning_rate is not None:
        cells[_cell_of(further)] = further.results.seeds, further.results.cost
    return cells


def _cell_of(further: FurtherTrial) -> Cell:
    assert further.results.learning_rate is not None  # it did not diverge
    return further.results.rank, further.results.learning_rate, further.steps


def _chosen(one: RankResults) -> Cell:
    assert one.learning_rate is not None  # the rank has usable trials
    return one.rank, one.learning_rate, 0


def _about_rank(results: Sequence[RankResults], further: FurtherTrial | None) -> _Question:
    """Ask whether the largest rank gains on the one below it."""
    *_, last = results
    larger = None
    if further is not None and not further.has_more_steps:
        if further.results.seeds:
            larger = _cell_of(further)
        smaller = last
    elif len(results) > 1:
        smaller, larger = results[-2], _chosen(last)
    if larger is None:
        return _Question(Need(name="more rank", state="not known"))
    need = Need(
        name="more rank", state="open", rank=smaller.rank, start=smaller.rank, end=larger[0]
    )
    return _Question(need, ((_chosen(smaller), larger),))


def _about_rate(results: Sequence[RankResults], rank: int, cells: Collection[Cell]) -> _Question:
    """Ask whether a neighbour of the chosen rate gains, or whether it lies at the edge.

    A rank that tried one rate alone took it from a rank that tried several: the nearest of these is
    asked instead. A rate whose seeds lack some of the examples cannot be compared.
    """
    searched = [one for one in results if len(one.rates) > 1]
    if not searched:
        return _Question(Need(name="another rate", state="not known"))
    one = min(searched, key=lambda other: (abs(log2(other.rank / rank)), other.rank))
    chosen = _chosen(one)
    place = one.rates.index(chosen[1])
    near = [rate for rate in one.rates[max(0, place - 1) : place + 2] if rate != chosen[1]]
    usable = [rate for rate in near if (one.rank, rate, 0) in cells]
    if not usable and any(rate in one.cost_by_rate for rate in near):
        return _Question(Need(name="another rate", state="not known"))
    need = Need(name="another rate", state="open", rank=one.rank, end=chosen[1])
    if len(near) == 2:
        pairs = tuple((chosen, (one.rank, rate, 0)) for rate in usable)
        # Training diverges at both neighbours: no other rate is left.
        state: NeedState = "open" if usable else "ruled out"
        return _Question(replace(need, state=state, start=chosen[1]), pairs)
    need = replace(need, edge="lowest" if place == 0 else "highest")
    if not usable:
        return _Question(need)
    inner = (one.rank, usable[0], 0)
    return _Question(replace(need, start=inner[1]), ((inner, chosen),))


def _about_steps(further: FurtherTrial | None) -> _Question:
    """Ask whether a trial with more steps gains on the same trial of the sweep."""
    if further is None or not further.has_more_steps or not further.results.seeds:
        return _Question(Need(name="more steps or data", state="not known"))
    longer = _cell_of(further)
    need = Need(
        name="more steps or data",
        state="open",
        rank=longer[0],
        start=further.sweep_steps,
        end=further.steps,
    )
    return _Question(need, (((longer[0], longer[1], 0), longer),))


def _answer(
    question: _Question,
    gain_of: Callable[[tuple[Cell, Cell]], Difference],
    margin: float,
    confidence: float,
) -> Need:
    """Return the need with its state and its figures, those of the best of its pairs.

    The rate to compare with is one of two, the better neighbour or the edge that the search came
    to, so the lower bound of its gain is corrected for two (Bonferroni). That no pair gains must
    hold for each, so the upper bounds need nothing.
    """
    gains = [(gain_of(pair), pair) for pair in question.pairs]
    if not gains:
        return question.need
    best, (_, end) = max(gains, key=lambda one: one[0].mean)
    claims = 2 if question.need.name == "another rate" else 1
    low = best.mean - _half_width(best, 1 - (1 - confidence) / claims)
    high = max(one.mean + _half_width(one, confidence) for one, _ in gains)
    if not np.isfinite(low):  # nothing shows how much seeds vary
        return replace(question.need, state="not known")
    state: NeedState = "open"
    if low > 0 and best.mean > margin:
        state = "shown"
    elif high <= margin:
        state = "ruled out"
    need = replace(question.need, state=state, gain=best.mean, gain_ci=(low, high))
    is_inner_rate = need.name == "another rate" and need.edge is None
    return replace(need, end=end[1]) if is_inner_rate else need


def _half_width(difference: Difference, confidence: float) -> float:
    """Return the distance of a one-sided bound from a difference, the lower where a prior helps."""

    def critical(df: float) -> float:
        return float(scipy.stats.t.ppf(confidence, df))

    return min(spread.half_width(critical) for spread in difference.spreads)
