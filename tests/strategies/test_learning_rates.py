"""Searches for learning rates, run by a grid on simulated losses."""

import math

import pytest

from rankwise.decide.config import DecisionConfig
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.grid import Grid
from rankwise.strategies.learning_rates import GivenRates, SearchedRates, make_rate_search
from rankwise.strategies.trial_keys import TrialKey
from tests.factories import NO_EVIDENCE
from tests.strategies.test_grid import RANKS, grid, run_grid, valley


@pytest.mark.parametrize("at_4", [1e-4, 1e-3, 8e-3])
def test_the_search_finds_the_best_rate_of_each_rank(at_4: float) -> None:
    def best(rank: int) -> float:
        return at_4 * (rank / 4) ** -0.5

    evidence = run_grid(grid(), valley(best))
    for rank in RANKS:
        second = evidence[(evidence["rank"] == rank) & (evidence["seed"] == 1)]
        assert second["learning_rate"].nunique() == 1
        assert (
            abs(math.log2(second["learning_rate"].iloc[0] / best(rank))) <= 0.6
        )  # the grid's step is an octave


def test_the_best_rate_of_the_end_ranks_lies_between_two_worse_ones() -> None:
    evidence = run_grid(grid(), valley(lambda rank: 3e-4))
    for rank in (4, 32):
        rates = sorted(evidence[evidence["rank"] == rank]["learning_rate"].unique())
        chosen = evidence[(evidence["rank"] == rank) & (evidence["seed"] == 1)][
            "learning_rate"
        ].iloc[0]
        assert rates[0] < chosen < rates[-1]


def test_a_lower_rate_replaces_one_that_diverges() -> None:
    def loss(rank: int, rate: float, seed: int) -> float:
        return math.nan if rate > 1e-4 * (1 + (seed == 0)) else 0.5 - rate

    evidence = run_grid(grid(seeds=2), loss)
    for rank in RANKS:
        fine = evidence[
            (evidence["rank"] == rank) & (evidence["seed"] == 1) & ~evidence["diverged"]
        ]
        assert fine["learning_rate"].nunique() == 1


def test_the_search_ends_even_if_everything_diverges() -> None:
    evidence = run_grid(grid(), lambda rank, rate, seed: math.nan)
    assert evidence["diverged"].all()
    assert evidence.groupby("rank")["learning_rate"].nunique().max() <= 8


@pytest.mark.parametrize(
    ("policy", "scaling"), [("r", 1.0), ("2r", 2.0), ("fixed:32", 8.0), ("rslora:16", 8.0)]
)
def test_a_larger_scaling_starts_the_search_lower(policy: str, scaling: float) -> None:
    def start(alpha: str) -> float:
        rates = sorted(
            trial.learning_rate
            for trial in grid(alpha=alpha).propose(NO_EVIDENCE)
            if trial.rank == 4
        )
        return rates[len(rates) // 2]

    assert start(policy) * scaling == pytest.approx(start("r"), rel=0.01)


def test_a_search_that_learns_nothing_widens_both_ways() -> None:
    """Too low a rate ends at guessing, and so does one at which training collapses."""
    strategy = Grid(SearchConfig(ranks=RANKS, seeds=2), DecisionConfig(), math.log(2))
    evidence = run_grid(strategy, lambda rank, rate, seed: math.log(2))
    rates = sorted(evidence[evidence["rank"] == 4]["learning_rate"].unique())
    assert (rates[0], rates[-1]) == (1e-3 / 16, 1e-3 * 16)
    for best in (8e-3, 1.25e-4):  # two octaves beyond what is tried first
        found = run_grid(
            strategy, lambda rank, rate, seed, best=best: 0.5 if rate == best else math.log(2)
        )  # type: ignore[misc]
        second = found[(found["rank"] == 4) & (found["seed"] == 1)]
        assert set(second["learning_rate"]) == {best}


def test_given_rates_propose_the_same_rates_in_every_search() -> None:
    search = make_rate_search((1e-3, 4e-3), parse_alpha_policy("r"), None)
    assert isinstance(search, GivenRates)
    both = [TrialKey(8, 1e-3, 0), TrialKey(8, 4e-3, 0)]
    assert search.propose([8], NO_EVIDENCE) == both
    assert search.propose_alone(8, NO_EVIDENCE) == both
    assert search.propose_next_to(4, 8, NO_EVIDENCE) == both
    assert search.remaining([8, 16], NO_EVIDENCE) == 4


def test_a_search_begins_with_three_rates_at_each_end() -> None:
    search = make_rate_search("auto", parse_alpha_policy("r"), None)
    assert isinstance(search, SearchedRates)
    wanted = search.propose(RANKS, NO_EVIDENCE)
    assert [key.rank for key in wanted] == [4, 4, 4, 32, 32, 32]
    assert [key.learning_rate for key in wanted[:3]] == [5e-4, 1e-3, 2e-3]
    assert {key.seed for key in wanted} == {0}
    assert search.remaining(RANKS, NO_EVIDENCE) == 3 + 1 + 1 + 3


def test_ranks_between_lie_on_the_line_through_both_ends() -> None:
    """In log rate over log rank: half-way between ranks 4 and 16 is the geometric mean."""
    evidence = run_grid(grid(ranks=(4, 8, 16)), valley(lambda rank: 4e-3 / rank))
    best = {
        rank: evidence.loc[(evidence["rank"] == rank) & (evidence["seed"] == 1), "learning_rate"]
        for rank in (4, 8, 16)
    }
    rates = {rank: values.unique().item() for rank, values in best.items()}
    assert rates[8] == pytest.approx(math.sqrt(rates[4] * rates[16]), rel=5e-3)
