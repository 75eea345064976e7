"""Numbers and lists for sentences about a decision, and the facts that only its caller knows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.decide.decision import Capacity, RankPattern, TestScore


@dataclass(frozen=True)
class Wording:
    """How sentences name a task's loss.

    Attributes:
        loss: unit of the loss and what it is a mean of, such as ``nats per token``.
        chance: what gives the chance-level loss.
    """

    loss: str = "nats per example"
    chance: str = "guessing by the classes' shares"

    @property
    def unit(self) -> str:
        """Unit of differences of the loss: ``nats``, or ``of NAME`` for a trainer's own metric."""
        if self.loss.endswith(" per trial"):
            return f"of {self.loss.removesuffix(' per trial').removeprefix('negative ')}"
        return self.loss.partition(" per ")[0]


PLAIN = Wording()


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """About how many trials a spent budget (in minutes) left out, and the first of them."""

    budget: float
    trials: int
    rank: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class FailedTrial:
    """A trial of the user's trainer that failed, and how."""

    name: str
    rank: int
    learning_rate: float
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a decision says beyond the findings.

    Attributes:
        wording: how sentences name the loss.
        is_sweep: whether rankwise trained the ranks, so that a command can add seeds.
        can_diagnose: whether it can also train a trial with more steps (``--diagnose``).
        failed: trials of the user's trainer that failed.
        left_out: trials that the sweep's budget left out.
        rank_pattern: a truncated adapter with a rank for each layer, if one was tried.
        test: the chosen adapter's results on the test part, if there is one.
        capacity: how much the recommended rank's adapter can hold, if the data's bits are known.
    """

    wording: Wording = PLAIN
    is_sweep: bool = False
    can_diagnose: bool = False
    failed: Sequence[FailedTrial] = ()
    left_out: LeftOut | None = None
    rank_pattern: RankPattern | None = None
    test: TestScore | None = None
    capacity: Capacity | None = None


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
    most = counted(numbers[-1], noun)
    return most if numbers[0] == numbers[-1] else f"{numbers[0]} to {most}"


def listed(items: Sequence[object]) -> str:
    """Write a list: ``4, 8 and 16``."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last
