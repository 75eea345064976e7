"""Non-inferiority shown while examples come in: when to look, what each look may err, when to stop.

Truncations of one adapter are compared with the adapter itself, example by example. Two rules hold
the error of the whole answer at ``1 - confidence``:

- **Fixed sequence.** Ranks are tested from the largest down, each at the full level, up to the
  first that is not shown to be within the margin. A wrong rank can be chosen only if the first
  wrong one in this order passes, which happens at most as often as one test errs. So no correction
  for the number of ranks is needed (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001,
  *J. Statist. Plann. Inference* 99, 25). This stays so with looks in between (Glimm, Maurer and
  Bretz 2010, *Stat. Med.* 29, 219).
- **Spending.** The looks at one rank share its level by a spending function (Lan and DeMets 1983,
  *Biometrika* 70, 659; the power family of Kim and DeMets 1987, ``level * share ** 2``). Each
  look is a test at its own increment, so by Bonferroni's inequality the error holds however the
  looks depend on each other.

Differences of losses are unbounded and skewed: a cut harms a few examples much. For them no bound
holds at every sample size (Bahadur and Savage 1956), and Student's is too short, because samples
without the rare harm have a small mean and a small spread at once. So a bound here is the wider of
Student's and the one corrected for skewness (Hall 1992, *J. R. Statist. Soc. B* 54, 221), and
counts two more examples like the worst one seen. docs/shrink.md has the error rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from rankwise.decide.variance import LEAST_EXAMPLES

Outcome = Literal["within", "worse", "open"]

FIRST_LOOK = 128  # examples; with fewer, the rare example that a cut harms may not be among them
SPENDING_POWER = 2.0
WORST_SEEN = 2
"""Further examples that a bound assumes, each like the worst one seen."""


def planned_looks(examples: int) -> tuple[int, ...]:
    """Return the numbers of examples at which to look: 128, doubled up to all of them."""
    sizes = []
    size = FIRST_LOOK
    while size < examples:
        sizes.append(size)
        size *= 2
    return (*sizes, examples)


def spent_errors(looks: Sequence[int], error: float) -> np.ndarray:
    """Return the error that each planned look may make, (L,); they add up to ``error``."""
    shares = np.asarray(looks) / looks[-1]
    return np.diff(error * shares**SPENDING_POWER, prepend=0.0)


def mean_bounds(values: np.ndarray, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a lower and an upper bound of a mean, each wrong with about this probability.

    Args:
        values: independent values, (..., n) with n of at least 2.
        error: probability, between 0 and 1/2.
    """
    return -_upper_bound(-values, error), _upper_bound(values, error)


def _upper_bound(values: np.ndarray, error: float) -> np.ndarray:
    worst = values.max(-1, keepdims=True)
    values = np.concatenate([values, *[worst] * WORST_SEEN], axis=-1)
    count = values.shape[-1]
    mean, spread = values.mean(-1), values.std(-1, ddof=1)
    third = ((values - mean[..., None]) ** 3).mean(-1)
    skewness = third / np.where(spread > 0, spread, 1.0) ** 3
    quantile = special.stdtrit(count - 1, error)
    # Where skewness would shorten the bound, Student's stays: an estimate of it may be wrong.
    t = np.minimum(_hall(skewness, count, quantile), quantile)
    return np.asarray(mean - t * spread / np.sqrt(count))


def _hall(skewness: np.ndarray, count: int, quantile: float) -> np.ndarray:
    """Return the quantile of a skewed sample's t statistic (Hall's monotone cubic, inverted)."""
    step = np.where(np.abs(skewness) < 1e-9, 1e-9, skewness) / np.sqrt(count)
    return 3 / step * (np.cbrt(1 + step * (quantile - step / 6)) - 1)


@dataclass(frozen=True)
class Judgement:
    """What the examples so far show about a mean difference in loss.

    Attributes:
        outcome: "within" the margin, "worse" than it, or still "open".
        examples: number of examples behind it; once settled, no more are looked at.
        mean: mean difference over these, nan if one is not finite.
        lower: lower bound, with the error of the look.
        upper: upper bound, with the error of the look.
    """

    outcome: Outcome
    examples: int
    mean: float
    lower: float
    upper: float


def judge(
    differences: np.ndarray, looks: Sequence[int], margin: float, confidence: float
) -> Judgement:
    """Judge whether a mean difference lies within a margin, at every planned look so far.

    Fewer than `LEAST_EXAMPLES` examples leave it open.

    Args:
        differences: loss minus that of the full adapter, of the examples in the order in which
            they were scored, (n,). An order that does not depend on the losses is assumed.
        looks: all planned numbers of examples, ascending; the last one may not be reached yet.
        margin: largest difference that counts as not worse.
        confidence: of either outcome, over all looks together.
    """
    if not np.isfinite(differences).all():
        return Judgement("worse", len(differences), np.nan, np.inf, np.inf)
    judged = Judgement("open", 0, np.nan, -np.inf, np.inf)
    for size, error in zip(looks, spent_errors(looks, 1 - confidence), strict=True):
        if size > len(differences):
            break
        seen = differences[:size]
        lower, upper = (float(bound) for bound in mean_bounds(seen, error))
        outcome: Outcome = "within" if upper < margin else "worse" if lower > margin else "open"
        if size < LEAST_EXAMPLES:
            outcome = "open"
            lower, upper = (lower, upper) if size > 1 else (-np.inf, np.inf)
        judged = Judgement(outcome, size, float(seen.mean()), lower, upper)
        if outcome != "open":
            break
    return judged


def passed(outcomes: Sequence[Outcome]) -> int:
    """Return how many tests of a fixed sequence pass before the first that does not."""
    count = 0
    while count < len(outcomes) and outcomes[count] == "within":
        count += 1
    return count


def still_needed(outcomes: Sequence[Outcome]) -> list[int]:
    """Return the places of a fixed sequence at which more examples may change the answer.

    None if the first test that has not passed is shown to fail, or all have passed. Tests beyond
    one that fails are never reached.
    """
    needed = []
    for place in range(passed(outcomes), len(outcomes)):
        if outcomes[place] == "worse":
            break
        if outcomes[place] == "open":
            needed.append(place)
    return needed
