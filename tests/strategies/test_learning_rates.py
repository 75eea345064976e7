"""Searches for learning rates, run by a grid on simulated losses with a known best rate."""

import math
from collections.abc import Callable

import pandas as pd
import pytest

from rankwise.decide.config import DecisionConfig
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.strategies import trial_keys
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.grid import Grid
from rankwise.strategies.learning_rates import GivenRates, SearchedRates, make_rate_search
from rankwise.strategies.trial_keys import TrialKey
from tests.factories import NO_EVIDENCE
from tests.strategies.simulation import decide_on
from tests.strategies.test_grid import RANKS, Loss, grid, run_grid, trials_of, valley

LADDER = (4, 8, 16, 32, 64)


def rates_of(evidence: pd.DataFrame, rank: int, seed: int = 0) -> list[float]:
    """Return the rates at which a seed of a rank was trained, ascending."""
    rows = evidence[(evidence["rank"] == rank) & (evidence["seed"] == seed)]
    return sorted(rows["learning_rate"].unique())


def chosen(evidence: pd.DataFrame, rank: int) -> float:
    """Return the rate that the search found, at which the second seed is trained too."""
    rate = trial_keys.chosen_rate(evidence, rank)
    assert rate in rates_of(evidence, rank, seed=1)
    return rate


def by_the_law(policy: str, at_4: float) -> Callable[[int], float]:
    """Return best rates that obey the law: 1 / sqrt(scaling * rank), written out."""
    power = {"r": 0.5, "2r": 0.5, "fixed:16": 0.0, "rslora": 0.25}[policy]
    return lambda rank: at_4 * (4 / rank) ** power


@pytest.mark.parametrize(
    ("policy", "at_4"),
    [("r", 1.1e-4), ("r", 8e-3), ("2r", 9e-4), ("fixed:16", 9e-4), ("rslora", 2e-4)],
)
def test_one_search_finds_the_best_rate_of_every_rank(policy: str, at_4: float) -> None:
    best = by_the_law(policy, at_4)
    evidence = run_grid(grid(ranks=LADDER, alpha=policy), valley(best))
    for rank in LADDER:
        assert abs(math.log2(chosen(evidence, rank) / best(rank))) <= 0.51  # a step is an octave
        if rank != 16:
            assert len(rates_of(evidence, rank)) == 1
    tried = rates_of(evidence, 16)
    assert tried[0] < chosen(evidence, 16) < tried[-1]  # between two worse ones


@pytest.mark.parametrize(("ranks", "searched"), [((4, 8), 8), ((4, 8, 16), 8), (RANKS, 16)])
def test_the_search_is_made_at_a_middle_rank_and_never_at_the_smallest(
    ranks: tuple[int, ...], searched: int
) -> None:
    first = grid(ranks=ranks).propose(NO_EVIDENCE)
    assert [trial.rank for trial in first] == 3 * [searched]


def test_ranks_below_4_get_rates_of_their_own() -> None:
    """On published models the smallest ranks want about a third of what the law gives them."""

    def best(rank: int) -> float:
        return 2e-3 / math.sqrt(rank) / (3 if rank < 4 else 1)

    evidence = run_grid(grid(ranks=(1, 2, *LADDER)), valley(best))
    for rank in (1, 2, *LADDER):
        assert abs(math.log2(chosen(evidence, rank) / best(rank))) <= 0.6
    lawful = run_grid(grid(ranks=(1, 2, *LADDER)), valley(lambda rank: 2e-3 / math.sqrt(rank)))
    assert [len(rates_of(lawful, rank)) for rank in (1, 2, *LADDER)] == [3, 3, 1, 3, 1, 1, 1]


@pytest.mark.parametrize("end", [4, 64])
def test_an_end_rank_off_the_trend_gets_its_neighbouring_rates_tried(end: int) -> None:
    """The last rank's best rate is a quarter of the law's, as it may be near a cliff."""

    def best(rank: int) -> float:
        return 2e-3 / math.sqrt(rank) / (4 if rank == end else 1)

    evidence = run_grid(grid(ranks=LADDER), valley(best))
    assert chosen(evidence, end) == pytest.approx(best(end), rel=0.01)
    tried = {rank: len(rates_of(evidence, rank)) for rank in LADDER}
    assert tried[end] > 3
    assert sum(tried.values()) - tried[end] - tried[16] == 3


def test_a_first_rank_that_falls_behind_as_the_trend_says_is_not_searched() -> None:
    """Losses grow by 0.1 with each halving of the rank, far more than the margin."""

    def loss(rank: int, rate: float, seed: int) -> float:
        return valley(by_the_law("r", 1e-3))(rank, rate, seed) + 0.1 * math.log2(64 / rank)

    evidence = run_grid(grid(ranks=LADDER), loss)
    assert len(rates_of(evidence, 4)) == 1


def test_a_cliff_next_to_the_best_rate_is_avoided_if_examples_cannot_tell() -> None:
    """Rates of 5e-4 and 1e-3 are alike at rank 16; from 2e-3 on nothing is learnt."""

    def loss(rank: int, rate: float, seed: int) -> float:
        at_16 = rate * math.sqrt(rank / 16)
        return math.log(2) if at_16 > 1.5e-3 else 0.5 + 0.1 * (at_16 < 4e-4) - 1e-9 * (rate > 7e-4)

    evidence = run_grid(chance_grid(RANKS), loss)
    assert chosen(evidence, 16) == 5e-4
    assert rates_of(evidence, 16) == [2.5e-4, 5e-4, 1e-3]


@pytest.mark.parametrize(
    ("below", "second_seed", "expected", "tried"),
    [
        (0.01, 0.60, 5e-4, [5e-4, 1e-3]),  # the second seed falls off a cliff at the best rate
        (0.01, 0.49, 1e-3, [5e-4, 1e-3]),  # the second seed confirms the best rate
        (0.03, 0.60, 1e-3, [1e-3]),  # beyond the margin of 0.02 it is not asked
    ],
)
def test_the_second_seed_is_asked_where_a_lower_rate_is_nearly_as_good(
    below: float, second_seed: float, expected: float, tried: list[float]
) -> None:
    """With the first seed 1e-3 is best at rank 16, and the losses of both seeds at 5e-4 agree."""

    def loss(rank: int, rate: float, seed: int) -> float:
        at_16 = round(rate * math.sqrt(rank / 16), 5)
        if at_16 == 1e-3 and seed == 1:
            return second_seed
        return {1e-3: 0.5, 5e-4: 0.5 + below}.get(at_16, 0.6)

    whole = run_grid(grid(), loss)
    assert rates_of(whole, 16, seed=1) == tried
    assert chosen(whole, 16) == expected
    assert chosen(whole, 32) == pytest.approx(expected / math.sqrt(2), rel=1e-2)
    more = run_grid(grid(seeds=3), loss, start=whole)
    assert rates_of(more, 16, seed=2) == [expected]
    assert decide_on(more).table[2].learning_rate == expected


@pytest.mark.parametrize(("cliff", "expected"), [(4e-4, 2.5e-4), (2e-4, 1.25e-4), (1e-4, 6.25e-5)])
def test_below_a_rate_at_which_the_second_seed_diverges_a_lower_one_is_taken(
    cliff: float, expected: float
) -> None:
    """With the first seed 5e-4 is best at rank 16, and 1e-3 better than the lower rates."""

    def loss(rank: int, rate: float, seed: int) -> float:
        at_16 = rate * math.sqrt(rank / 16)
        if seed == 1 and at_16 > cliff:
            return math.nan
        return 0.5 + (0.005 if at_16 > 7e-4 else 0.01 * abs(math.log2(at_16 / 5e-4)))

    evidence = run_grid(grid(), loss)
    assert chosen(evidence, 16) == expected
    assert max(rates_of(evidence, 16, seed=1)) == 5e-4
    assert chosen(evidence, 32) == pytest.approx(expected / math.sqrt(2), rel=1e-2)
    resumed = run_grid(grid(), loss, start=run_grid(grid(), loss, stop_after=6))
    assert trials_of(resumed) == trials_of(evidence)


def test_the_search_ends_if_the_second_seed_always_diverges() -> None:
    """The first seed alone cannot tell, and no rate is left."""
    strategy = grid(ranks=(16,))
    evidence = run_grid(strategy, lambda rank, rate, seed: math.nan if seed else 0.5 + rate)
    assert len(rates_of(evidence, 16)) == 8
    assert evidence[evidence["seed"] == 1]["diverged"].all()


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
    ("policy", "scaling"), [("r", 1.0), ("2r", 2.0), ("fixed:32", 2.0), ("rslora:16", 4.0)]
)
def test_the_first_rate_follows_from_the_scaling(policy: str, scaling: float) -> None:
    _, start, _ = grid(alpha=policy).propose(NO_EVIDENCE)
    assert start.learning_rate == pytest.approx(2e-3 / math.sqrt(16 * scaling), rel=2e-3)


def test_the_first_rate_of_a_language_model_is_its_own() -> None:
    settings = SearchConfig(ranks=RANKS, lora_alpha="fixed:32")
    strategy = Grid(settings, DecisionConfig(), None, "CAUSAL_LM")
    _, start, _ = strategy.propose(NO_EVIDENCE)
    assert start.learning_rate == pytest.approx(3e-4, rel=5e-3)


def chance_grid(ranks: tuple[int, ...]) -> Grid:
    """Return a grid that knows the chance-level loss of two equal classes."""
    return Grid(SearchConfig(ranks=ranks, seeds=2), DecisionConfig(), math.log(2))


def learns_only_at(rate: float) -> Loss:
    """A loss at chance level but for one rate of rank 16."""
    return lambda rank, tried, seed: 0.5 if (rank, tried) == (16, rate) else math.log(2)


def test_a_search_that_learns_nothing_widens_both_ways() -> None:
    """Too low a rate ends at guessing, and so does one at which training collapses."""
    evidence = run_grid(chance_grid((4, 16)), lambda rank, rate, seed: math.log(2))
    tried = rates_of(evidence, 16)
    assert (tried[0], tried[-1]) == pytest.approx((5e-4 / 16, 5e-4 * 16), rel=5e-3)
    assert (len(rates_of(evidence, 4)), len(tried)) == (1, 9)
    for best in (4e-3, 6.25e-5):  # two octaves beyond what is tried first
        evidence = run_grid(chance_grid((16,)), learns_only_at(best))
        assert chosen(evidence, 16) == best


def test_a_rank_that_learns_nothing_at_the_carried_rate_is_searched() -> None:
    """Rank 8 learns at a quarter of the law's rate alone."""

    def loss(rank: int, rate: float, seed: int) -> float:
        if rank == 8:
            return 0.5 if rate < 3e-4 else math.log(2)
        return valley(by_the_law("r", 1e-3))(rank, rate, seed)

    evidence = run_grid(chance_grid(RANKS), loss)
    assert chosen(evidence, 8) < 3e-4


def test_given_rates_propose_the_same_rates_in_every_search() -> None:
    search = make_rate_search((1e-3, 4e-3), parse_alpha_policy("r"), "SEQ_CLS", None)
    assert isinstance(search, GivenRates)
    both = [TrialKey(8, 1e-3, 0), TrialKey(8, 4e-3, 0)]
    assert search.propose([8], NO_EVIDENCE) == both
    assert search.propose_alone(8, NO_EVIDENCE) == both
    assert search.propose_next_to(4, 8, NO_EVIDENCE) == both
    assert search.remaining([8, 16], NO_EVIDENCE) == 4


def test_a_search_begins_with_three_rates() -> None:
    search = make_rate_search("auto", parse_alpha_policy("r"), "SEQ_CLS", None)
    assert isinstance(search, SearchedRates)
    three = [TrialKey(16, rate, 0) for rate in (2.5e-4, 5e-4, 1e-3)]
    assert search.propose(RANKS, NO_EVIDENCE) == three
    assert search.propose_alone(16, NO_EVIDENCE) == three
    assert search.remaining(RANKS, NO_EVIDENCE) == 1 + 1 + 3 + 1
    assert search.remaining((2, 4, 8), NO_EVIDENCE) == 3 + 3 + 1
