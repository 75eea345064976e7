import math
from collections.abc import Callable, Sequence

import pandas as pd
import pytest

from rankwise.decide.config import DecisionConfig
from rankwise.engine.trial import Trial
from rankwise.strategies.config import SearchConfig
from rankwise.strategies.grid import Grid

RANKS = (4, 8, 16, 32)
Loss = Callable[[int, float, int], float]
NOTHING = pd.DataFrame(
    columns=["rank", "seed", "learning_rate", "example_id", "loss", "score", "diverged"]
)


def grid(
    learning_rate: object = "auto", ranks: Sequence[int] = RANKS, seeds: int = 2, alpha: str = "r"
) -> Grid:
    settings = SearchConfig(ranks=ranks, seeds=seeds, learning_rate=learning_rate, lora_alpha=alpha)  # type: ignore[arg-type]
    return Grid(settings, DecisionConfig())


def rows_of(trial: Trial, loss: float) -> list[dict[str, object]]:
    diverged = not math.isfinite(loss)
    examples = [-1] if diverged else range(4)
    return [
        {
            "rank": trial.rank,
            "seed": trial.seed,
            "learning_rate": trial.learning_rate,
            "example_id": example,
            # examples differ a little, so that standard errors are not zero
            "loss": loss + 1e-4 * (example % 2) * trial.learning_rate,
            "score": 0.0,
            "diverged": diverged,
        }
        for example in examples
    ]


def run(
    strategy: Grid, loss: Loss, stop_after: int | None = None, start: pd.DataFrame | None = None
) -> pd.DataFrame:
    evidence = NOTHING if start is None else start
    done = 0
    while trials := strategy.propose(evidence):
        for trial in trials:
            new = pd.DataFrame(rows_of(trial, loss(trial.rank, trial.learning_rate, trial.seed)))
            evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
            done += 1
            if done == stop_after:
                return evidence
    return evidence


def valley(best: Callable[[int], float]) -> Loss:
    """A loss that grows with the distance from a rank's best rate, in octaves."""
    return lambda rank, rate, seed: 0.5 + 0.02 * math.log2(rate / best(rank)) ** 2 + 1e-3 * seed


def trials_of(evidence: pd.DataFrame) -> set[tuple[int, float, int]]:
    keys = evidence[["rank", "learning_rate", "seed"]].drop_duplicates()
    return set(keys.itertuples(index=False, name=None))


@pytest.mark.parametrize("at_4", [1e-4, 1e-3, 8e-3])
def test_the_search_finds_each_rank_s_best_rate(at_4: float) -> None:
    def best(rank: int) -> float:
        return at_4 * (rank / 4) ** -0.5

    evidence = run(grid(), valley(best))
    for rank in RANKS:
        second = evidence[(evidence["rank"] == rank) & (evidence["seed"] == 1)]
        assert second["learning_rate"].nunique() == 1
        assert (
            abs(math.log2(second["learning_rate"].iloc[0] / best(rank))) <= 0.6
        )  # the grid's step is an octave


def test_at_the_ends_the_best_lies_between_two_that_are_worse() -> None:
    evidence = run(grid(), valley(lambda rank: 3e-4))
    for rank in (4, 32):
        rates = sorted(evidence[evidence["rank"] == rank]["learning_rate"].unique())
        chosen = evidence[(evidence["rank"] == rank) & (evidence["seed"] == 1)][
            "learning_rate"
        ].iloc[0]
        assert rates[0] < chosen < rates[-1]


def test_stopping_anywhere_changes_nothing() -> None:
    loss = valley(lambda rank: 6e-4)
    whole = run(grid(), loss)
    for stop in range(1, len(trials_of(whole))):
        part = run(grid(), loss, stop_after=stop)
        assert trials_of(run(grid(), loss, start=part)) == trials_of(whole)


def test_more_seeds_extend_the_same_trials() -> None:
    loss = valley(lambda rank: 6e-4)
    two, four = run(grid(seeds=2), loss), run(grid(seeds=4), loss)
    extended = run(grid(seeds=4), loss, start=two)
    assert trials_of(two) < trials_of(four) == trials_of(extended)


def test_given_rates_are_all_tried_and_the_best_goes_on() -> None:
    evidence = run(grid([1e-3, 4e-3], seeds=3), valley(lambda rank: 1e-3 if rank > 8 else 4e-3))
    assert trials_of(evidence) == {
        *((rank, rate, 0) for rank in RANKS for rate in (1e-3, 4e-3)),
        *((rank, 1e-3 if rank > 8 else 4e-3, seed) for rank in RANKS for seed in (1, 2)),
    }


def test_one_rate_is_a_plain_grid() -> None:
    evidence = run(grid([1e-3], seeds=2), valley(lambda rank: 1e-3))
    assert trials_of(evidence) == {(rank, 1e-3, seed) for rank in RANKS for seed in (0, 1)}


def test_a_rate_that_diverges_is_left_for_a_lower_one() -> None:
    def loss(rank: int, rate: float, seed: int) -> float:
        return math.nan if rate > 1e-4 * (1 + (seed == 0)) else 0.5 - rate

    evidence = run(grid(seeds=2), loss)
    for rank in RANKS:
        fine = evidence[
            (evidence["rank"] == rank) & (evidence["seed"] == 1) & ~evidence["diverged"]
        ]
        assert fine["learning_rate"].nunique() == 1


def test_the_search_ends_even_if_everything_diverges() -> None:
    evidence = run(grid(), lambda rank, rate, seed: math.nan)
    assert evidence["diverged"].all()
    assert evidence.groupby("rank")["learning_rate"].nunique().max() <= 8


@pytest.mark.parametrize(
    ("policy", "scaling"), [("r", 1.0), ("2r", 2.0), ("fixed:32", 8.0), ("rslora:16", 8.0)]
)
def test_the_search_starts_lower_where_the_scaling_is_larger(policy: str, scaling: float) -> None:
    def start(alpha: str) -> float:
        rates = sorted(
            trial.learning_rate for trial in grid(alpha=alpha).propose(NOTHING) if trial.rank == 4
        )
        return rates[len(rates) // 2]

    assert start(policy) * scaling == pytest.approx(start("r"), rel=0.01)


def test_trials_carry_the_policy_s_alpha() -> None:
    trials = grid([1e-3], alpha="rslora:8").propose(NOTHING)
    assert {(trial.rank, trial.lora_alpha, trial.use_rslora) for trial in trials} == {
        (r, 8, True) for r in RANKS
    }
    assert [trial.lora_alpha for trial in grid([1e-3], alpha="2r").propose(NOTHING)] == [
        8,
        16,
        32,
        64,
    ]


def test_a_search_that_learns_nothing_looks_both_ways() -> None:
    """Too low a rate ends at guessing, and so does one at which training collapses."""
    strategy = Grid(SearchConfig(ranks=RANKS, seeds=2), DecisionConfig(), math.log(2))
    evidence = run(strategy, lambda rank, rate, seed: math.log(2))
    rates = sorted(evidence[evidence["rank"] == 4]["learning_rate"].unique())
    assert (rates[0], rates[-1]) == (1e-3 / 16, 1e-3 * 16)
    for best in (8e-3, 1.25e-4):  # two octaves beyond what is tried first
        found = run(
            strategy, lambda rank, rate, seed, best=best: 0.5 if rate == best else math.log(2)
        )  # type: ignore[misc]
        second = found[(found["rank"] == 4) & (found["seed"] == 1)]
        assert set(second["learning_rate"]) == {best}


def test_expected_trials_become_exact() -> None:
    loss = valley(lambda rank: 6e-4)
    whole = run(grid(), loss)
    assert grid().expected_trials(whole) == len(trials_of(whole))
    assert grid([1e-3]).expected_trials(whole.iloc[:0]) == 8
