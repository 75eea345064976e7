"""Error rates of the sequential test, with a known truth, and its parts."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from rankwise.decide.sequential import (
    judge,
    mean_bounds,
    passed,
    planned_looks,
    spent_errors,
    still_needed,
)

MARGIN, CONFIDENCE = 0.02, 0.95
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def rare_harm(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Three examples of a hundred lose a nat or so, the others hardly change: mean 0."""
    harmed = random.random(shape) < 0.03
    return random.normal(0, 0.05, shape) + harmed * random.exponential(1.0, shape) - 0.03


# What a cut does to losses; each has mean 0 and is shifted to the mean that a test needs.
KINDS: dict[str, Draw] = {
    "normal": lambda random, shape: random.normal(0, 0.3, shape),
    "heavy tails": lambda random, shape: 0.2 * random.standard_t(3, shape),
    "skewed": lambda random, shape: random.exponential(0.3, shape) - 0.3,
    "lognormal": lambda random, shape: 0.1 * random.lognormal(0, 1.2, shape) - 0.1 * np.exp(0.72),
}


def outcomes(draw: Draw, mean: float, runs: int, examples: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    looks = planned_looks(examples)
    values = draw(random, (runs, examples)) + mean
    return [judge(row, looks, MARGIN, CONFIDENCE).outcome for row in values]


def most(runs: int, error: float) -> int:
    """The number of errors that a test with this error rate exceeds once in a thousand checks."""
    return int(stats.binom.ppf(0.999, runs, error))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_cut_at_the_margin_passes_no_more_often_than_stated(kind: str, examples: int) -> None:
    found = outcomes(KINDS[kind], MARGIN, 1500, examples)
    assert found.count("within") <= most(1500, 1 - CONFIDENCE)
    assert found.count("worse") <= most(1500, 1 - CONFIDENCE)


def test_rare_harm_is_missed_by_the_rate_that_the_docs_state_and_less_than_by_students_t() -> None:
    random = np.random.default_rng(6)
    values = rare_harm(random, (1000, 500)) + MARGIN
    seen = np.array([judge(row, (500,), MARGIN, CONFIDENCE).outcome for row in values])
    by_student = sum(student(row, 0.05) < MARGIN for row in values)
    assert (seen == "within").sum() < by_student / 2
    assert (seen == "within").mean() < 0.09  # docs/shrink.md


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [500, 1000, 4000])
def test_error_rates_over_many_runs(kind: str, examples: int) -> None:
    found = outcomes(KINDS[kind], MARGIN, 10_000, examples, seed=1)
    assert found.count("within") <= most(10_000, 1 - CONFIDENCE)


def test_a_fixed_sequence_of_ranks_errs_no_more_often_than_one_test() -> None:
    """True costs by rank: 16 and 8 within the margin, 4 exactly at it, 2 and 1 beyond."""
    random = np.random.default_rng(2)
    looks = planned_looks(800)
    costs = np.array([0.0, 0.002, MARGIN, 0.03, 0.05])
    wrong, runs = 0, 600
    for _ in range(runs):
        shared = random.normal(0, 0.1, 800)
        values = shared + random.normal(0, 0.1, (5, 800)) + costs[:, None]
        results = [judge(row, looks, MARGIN, CONFIDENCE).outcome for row in values]
        wrong += passed(results) > 2
    assert wrong <= most(runs, 1 - CONFIDENCE)


def test_clear_cases_need_few_examples_and_close_ones_use_all() -> None:
    random = np.random.default_rng(3)
    looks = planned_looks(8000)
    clear = judge(random.normal(0, 0.05, 8000), looks, MARGIN, CONFIDENCE)
    assert clear.outcome == "within" and clear.examples <= 512
    bad = judge(random.normal(0.5, 0.3, 8000), looks, MARGIN, CONFIDENCE)
    assert (bad.outcome, bad.examples) == ("worse", 128)
    close = judge(random.normal(MARGIN, 0.05, 8000), looks, MARGIN, CONFIDENCE)
    assert (close.outcome, close.examples) == ("open", 8000)


def student(values: np.ndarray, error: float) -> float:
    interval = stats.ttest_1samp(values, 0, alternative="less").confidence_interval(1 - error)
    return float(interval.high)


def test_bounds_are_students_with_two_more_of_the_worst_values() -> None:
    symmetric = np.linspace(-1, 1, 101)
    lower, upper = mean_bounds(symmetric, 0.05)
    assert float(upper) >= student(np.append(symmetric, [1.0, 1.0]), 0.05)
    assert float(upper) == pytest.approx(student(np.append(symmetric, [1.0, 1.0]), 0.05), rel=0.01)
    assert float(lower) == pytest.approx(-float(upper))


def test_a_skewed_sample_gets_halls_bound() -> None:
    """The transformed t statistic at the bound is Student's quantile (Hall 1992, section 3)."""
    values = np.random.default_rng(5).exponential(1.0, 300)
    upper = float(mean_bounds(values, 0.05)[1])
    values = np.append(values, [values.max()] * 2)
    assert upper > student(values, 0.05)
    count, spread = len(values), values.std(ddof=1)
    t = np.sqrt(count) * (values.mean() - upper) / spread
    step = ((values - values.mean()) ** 3).mean() / spread**3 / np.sqrt(count)
    cubic = t + step * t**2 / 3 + step**2 * t**3 / 27 + step / 6
    assert cubic == pytest.approx(stats.t.ppf(0.05, count - 1), abs=1e-9)


def test_equal_losses_are_within_the_margin_and_losses_that_are_not_finite_beyond() -> None:
    assert judge(np.zeros(128), (128,), MARGIN, CONFIDENCE).outcome == "within"
    values = np.zeros(128)
    values[5] = np.inf
    assert judge(values, (128,), MARGIN, CONFIDENCE).outcome == "worse"


def test_looks_double_and_spend_the_whole_error() -> None:
    assert planned_looks(1024) == (128, 256, 512, 1024)
    assert planned_looks(1000) == (128, 256, 512, 1000)
    assert planned_looks(60) == (60,)
    errors = spent_errors((128, 256, 512, 1000), 0.05)
    assert errors.sum() == pytest.approx(0.05)
    assert (np.diff(errors) > 0).all()


def test_a_sequence_stops_at_the_first_rank_that_does_not_pass() -> None:
    assert passed(["within", "within", "open", "within"]) == 2
    assert still_needed(["within", "open", "within", "open", "worse", "open"]) == [1, 3]
    assert still_needed(["within", "worse", "open"]) == []
    assert still_needed(["within", "within"]) == []


@pytest.mark.parametrize("examples", [1, 2, 19])
def test_too_few_examples_settle_nothing(examples: int) -> None:
    """However alike they are: those that would differ may not be among them."""
    for difference in (0.0, 5.0):
        judged = judge(np.full(examples, difference), (examples,), MARGIN, CONFIDENCE)
        assert (judged.outcome, judged.examples) == ("open", examples)
    assert judge(np.zeros(20), (20,), MARGIN, CONFIDENCE).outcome == "within"


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_the_least_number_of_examples_keeps_the_error(kind: str) -> None:
    """2,000 runs of 20 examples whose mean is exactly the margin: 5 %, up to 3 standard errors."""
    random = np.random.default_rng(7)
    values = KINDS[kind](random, (2000, 20)) + MARGIN
    wrong = [judge(row, (20,), MARGIN, CONFIDENCE).outcome == "within" for row in values]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
