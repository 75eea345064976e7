"""Words and numbers for sentences about a decision, and the facts that only its caller knows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.decide.decision import RankPattern, TestScore
from rankwise.decide.findings import Findings


@dataclass(frozen=True)
class Wording:
    """How sentences name a task's loss.

    Attributes:
        unit: unit of the loss.
        chance: what gives the chance-level loss.
    """

    unit: str = "nats"
    chance: str = "guessing by the classes' shares"


PLAIN = Wording()


def wording_of(loss: str, chance: str) -> Wording:
    """Return the wording of a task.

    Args:
        loss: unit of the loss and what it is a mean of, such as ``nats per example``.
        chance: what gives the chance-level loss.
    """
    return Wording(loss.partition(" per ")[0], chance)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Trials that a spent budget left out.

    Attributes:
        budget: the budget, minutes.
        trials: about how many trials are left out.
        rank: rank of the first of them.
        learning_rate: its learning rate.
        seed: its seed.
    """

    budget: float
    trials: int
    rank: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a decision says beyond the findings.

    Attributes:
        wording: how sentences name the loss.
        is_sweep: whether rankwise trained the ranks, so that a command can add seeds.
        left_out: trials that the sweep's budget left out.
        rank_pattern: a truncated adapter with a rank for each layer, if one was tried.
        test: the chosen adapter's results on the test part, if there is one.
    """

    wording: Wording = PLAIN
    is_sweep: bool = False
    left_out: LeftOut | None = None
    rank_pattern: RankPattern | None = None
    test: TestScore | None = None


def metric_name(findings: Findings) -> str:
    """Return what sentences call the metric compared."""
    return "held-out loss" if findings.rule.metric == "loss" else findings.rule.metric


def with_unit(number: str, findings: Findings, wording: Wording) -> str:
    """Append the unit of the loss to a number; other metrics have none."""
    return f"{number} {wording.unit}" if findings.rule.metric == "loss" else number


def apart(mean: float, findings: Findings, wording: Wording) -> str:
    """Write a difference of the metric: ``0.0050 nats worse``."""
    side = "worse" if mean >= 0 else "better"
    return f"{with_unit(f'{abs(mean):.4f}', findings, wording)} {side}"


def without_exponent(value: float) -> str:
    """Write a positive bound with three significant digits."""
    if value < 1e-4:
        return "0.0001"
    return str(np.format_float_positional(float(f"{value:.3g}"), trim="-"))


def percent(share: float) -> str:
    """Write a confidence in percent."""
    return f"{100 * share:.4g} %"


def counted(count: int, noun: str) -> str:
    """Write a number of things: ``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted_range(counts: Iterable[int], noun: str) -> str:
    """Write a range of numbers of things: ``2 to 5 seeds``."""
    numbers = sorted(counts)
    if numbers[0] == numbers[-1]:
        return counted(numbers[0], noun)
    return f"{numbers[0]} to {counted(numbers[-1], noun)}"


def listed(items: Sequence[object]) -> str:
    """Write a list: ``4, 8 and 16``."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last
