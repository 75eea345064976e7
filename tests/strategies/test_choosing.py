"""Escalate, race and once on made-up evidence whose truth is known: what they ask for, and where they stop."""

import random
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from rankwise.decide import Decision
from rankwise.decide.config import DecisionConfig
from rankwise.decide.evidence import read_rank_results
from rankwise.decide.select import decide
from rankwise.engine.trial import Trial
from rankwise.strategies import strategies
from rankwise.strategies.base import Strategy
from rankwise.strategies.config import SearchConfig

RANKS = (2, 4, 8, 16, 32)
MARGIN, CONFIDENCE = 0.02, 0.95
RULE = DecisionConfig(margin=MARGIN, confidence=CONFIDENCE)
EXAMPLES = 100
NOTHING = pd.DataFrame(
    columns=["rank", "seed", "learning_rate", "example_id", "loss", "score", "diverged"]
)
FROM_8 = {2: 0.70, 4: 0.60}  # the truth where rank 8 suffices; 0.5 from there on
Truth = Callable[[int], float]


def strategy(
    name: str, ranks: tuple[int, ...] = RANKS, seeds: int = 3, rates: object = (1e-3,)
) -> Strategy:
    settings = SearchConfig(ranks=ranks, seeds=seeds, learning_rate=rates)  # type: ignore[arg-type]
    return strategies()[name](settings, RULE)


def evidence_of(trial: Trial, truth: Truth, noise: float) -> pd.DataFrame:
    """A trial's losses, a function of the trial alone: hard examples are hard at every rank."""
    own = random.Random(f"{trial.rank} {trial.seed} {trial.learning_rate}")
    level = truth(trial.rank) + own.gauss(0, noise)
    hard = random.Random(0)
    return pd.DataFrame(
        {
            "rank": trial.rank,
            "seed": trial.seed,
            "learning_rate": trial.learning_rate,
            "example_id": range(EXAMPLES),
            "loss": [level + hard.uniform(-0.3, 0.3) + own.gauss(0, 0.02) for _ in range(EXAMPLES)],
            "score": 1.0,
            "diverged": False,
        }
    )


def run(
    asked: Strategy,
    truth: Truth,
    start: pd.DataFrame = NOTHING,
    stop_after: int = 1000,
    noise: float = 1e-3,
) -> tuple[pd.DataFrame, list[Trial]]:
    """Run one trial at a time, asking anew after each."""
    evidence, done = start, []
    while len(done) < stop_after and (trials := asked.propose(evidence)):
        new = evidence_of(trials[0], truth, noise)
        evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
        done.append(trials[0])
    return evidence, done


def judge(evidence: pd.DataFrame) -> Decision:
    return decide(read_rank_results(evidence), MARGIN, CONFIDENCE)


def ranks_in_order(trials: list[Trial]) -> list[int]:
    return list(dict.fromkeys(trial.rank for trial in trials))


def from_8(rank: int) -> float:
    return FROM_8.get(rank, 0.5)


@pytest.mark.parametrize(
    ("truth", "order", "chosen"),
    [
        (lambda rank: 0.5, [8, 16, 4, 2], 2),  # nothing gained above, nothing lost below
        (from_8, [8, 16, 4], 8),
        (lambda rank: 0.9 - 0.1 * (rank >= 16) - 0.1 * (rank >= 32), [8, 16, 32], 32),
        (lambda rank: 0.9 - 0.1 * (rank >= 16), [8, 16, 32], 16),
    ],
)
def test_escalate_goes_up_while_it_gains_and_down_while_nothing_is_lost(
    truth: Truth, order: list[int], chosen: int
) -> None:
    evidence, trials = run(strategy("escalate"), truth)
    assert ranks_in_order(trials) == order
    assert all(sum(trial.rank == rank for trial in trials) == 3 for rank in order)
    assert judge(evidence).rank == chosen


def test_escalate_starts_at_the_second_smallest_without_an_8() -> None:
    assert {trial.rank for trial in strategy("escalate", (3, 6, 12)).propose(NOTHING)} == {6}
    assert {trial.rank for trial in strategy("escalate", (16, 32)).propose(NOTHING)} == {32}


def test_escalate_searches_a_learning_rate_for_its_first_rank_alone() -> None:
    """The others take over their neighbour's, falling as the cube root of the rank."""
    _, trials = run(strategy("escalate", rates="auto"), lambda rank: 0.5)
    rates = {
        rank: {trial.learning_rate for trial in trials if trial.rank == rank}
        for rank in (8, 16, 4, 2)
    }
    assert len(rates[8]) > 2
    (best,) = {trial.learning_rate for trial in trials if trial.rank == 8 and trial.seed == 1}
    for rank in (16, 4, 2):
        (taken,) = rates[rank]
        assert taken == pytest.approx(best * (8 / rank) ** (1 / 3), rel=5e-3)


def test_escalate_foretells_every_given_rate_of_the_rank_it_has_come_to() -> None:
    asked = strategy("escalate", rates=(1e-3, 2e-3, 4e-3))
    whole, trials = run(asked, lambda rank: 0.5)
    of_one = 3 + 2  # rates, and two more seeds at one of them
    assert len(trials) == 4 * of_one  # 8, 16, 4, 2
    for complete in range(len(trials)):
        rank_complete = -(-(complete + 1) // of_one) * of_one
        assert asked.expected_trials(whole.iloc[: complete * EXAMPLES]) == rank_complete


def test_escalate_searches_again_where_the_neighbour_only_diverged() -> None:
    asked = strategy("escalate", (4, 8), rates="auto")
    evidence = NOTHING
    while trials := [trial for trial in asked.propose(evidence) if trial.rank == 8]:
        rows = evidence_of(trials[0], from_8, 1e-3).assign(diverged=True)
        evidence = pd.concat([evidence, rows], ignore_index=True) if len(evidence) else rows
    assert len({trial.learning_rate for trial in asked.propose(evidence) if trial.rank == 4}) == 3


def test_escalate_gives_more_seeds_to_ranks_that_it_would_no_longer_visit() -> None:
    """With one seed it had climbed to 32, by luck; with three it turns at 16."""
    turned, trials = run(strategy("escalate"), lambda rank: 0.5)
    assert 32 not in ranks_in_order(trials)
    stray = evidence_of(
        replace(trials[0], rank=32, seed=0, lora_alpha=32.0), lambda rank: 0.5, 1e-3
    )
    extended, more = run(
        strategy("escalate"), lambda rank: 0.5, pd.concat([turned, stray], ignore_index=True)
    )
    assert [(trial.rank, trial.seed) for trial in more] == [(32, 1), (32, 2)]
    assert (extended.groupby("rank")["seed"].nunique() == 3).all()


def test_race_stops_as_soon_as_the_decision_stands() -> None:
    evidence, trials = run(strategy("race", seeds=6), from_8)
    assert {trial.seed for trial in trials} == {0, 1}  # never before a second seed
    assert judge(evidence).rank == 8


def test_race_drops_what_is_shown_to_be_worse_and_nothing_else() -> None:
    """The ranks above 4 differ by less than the noise of a seed, so that the race goes on among them."""
    evidence, _ = run(
        strategy("race", seeds=4), lambda rank: {2: 1.5, 4: 1.4}.get(rank, 0.5), noise=0.03
    )
    seeds = evidence.groupby("rank")["seed"].nunique()
    assert seeds[2] == seeds[4] == 2
    assert seeds[8] == seeds[16] == seeds[32] > 2


def test_race_ends_when_the_seeds_are_used_up() -> None:
    evidence, trials = run(strategy("race", seeds=3), lambda rank: 0.5, noise=0.2)
    assert judge(evidence).verdict == "undetermined"
    assert len(trials) == 3 * len(RANKS)


@pytest.mark.parametrize("rates", [(1e-3,), (1e-3, 2e-3), "auto"])
@pytest.mark.parametrize("name", ["escalate", "race", "once", "grid"])
def test_resumed_anywhere_it_is_the_same_sweep(name: str, rates: object) -> None:
    asked = strategy(name, rates=rates)
    whole, trials = run(asked, from_8, noise=0.01)
    each = {
        trial.name: rows
        for trial, (_, rows) in zip(trials, whole.groupby(whole.index // EXAMPLES), strict=True)
    }
    for stop, trial in enumerate(trials[1:], start=1):
        part = pd.concat([each[done.name] for done in trials[:stop]]).sample(
            frac=1, random_state=stop
        )
        assert asked.propose(part)[0] == trial  # nor does the order of rows matter
    for lost in trials[:: len(trials) // 3]:  # a pack's trials may be finished in any order
        part = pd.concat([rows for done, rows in each.items() if done != lost.name])
        assert run(asked, from_8, part, noise=0.01)[1] == [lost]
    assert asked.expected_trials(whole) == len(trials) == len(each)


def test_once_trains_the_largest_rank_and_cuts_the_others() -> None:
    _, trials = run(strategy("once", seeds=2, rates=(1e-3, 2e-3)), lambda rank: 0.5)
    trained = [trial for trial in trials if trial.truncated_from is None]
    assert {trial.rank for trial in trained} == {32}
    assert len(trained) == 3  # two rates, and the second seed at the better one
    cuts = [trial for trial in trials if trial.truncated_from is not None]
    assert sorted(trial.rank for trial in cuts) == sorted(2 * RANKS[:-1])
    for cut in cuts:
        assert cut.truncated_from == f"r32-lr{cut.learning_rate:g}-seed{cut.seed}"
        assert cut.lora_alpha == cut.rank  # the scaling stays


@pytest.mark.parametrize(
    ("losses", "trained"),
    [  # the start is 1e-3 at rank 4 and falls with the cube root
        ({5e-4: 0.5, 2e-3: 0.6}, [(5e-4, 0), (2e-3, 0), (5e-4, 1)]),
        (
            {5e-4: 0.9, 2e-3: 0.7, 8e-3: 0.6, 0.032: 0.8},
            [(5e-4, 0), (2e-3, 0), (8e-3, 0), (0.032, 0), (8e-3, 1)],
        ),
    ],
)
def test_once_leaps_to_higher_rates_while_that_gains(
    losses: dict[float, float], trained: list[tuple[float, int]]
) -> None:
    asked = strategy("once", seeds=2, rates="auto")
    assert [trial.learning_rate for trial in asked.propose(NOTHING)] == [
        5e-4,
        2e-3,
    ]  # both may train at once
    evidence, done = NOTHING, []
    while trials := asked.propose(evidence):
        rows = evidence_of(trials[0], lambda rank: losses[trials[0].learning_rate], 1e-3)
        evidence = pd.concat([evidence, rows], ignore_index=True) if len(evidence) else rows
        done.append(trials[0])
    assert [
        (trial.learning_rate, trial.seed) for trial in done if trial.truncated_from is None
    ] == trained
    assert {trial.learning_rate for trial in done if trial.truncated_from is not None} == {
        trained[-1][0]
    }


def test_cuts_of_a_rate_that_diverges_later_do_not_count() -> None:
    """Rank 2's cut at the rate that is out looks best of all; the trained rank stands at the other rate."""
    cut = Trial(
        rank=2, seed=0, learning_rate=4e-3, lora_alpha=2.0, truncated_from="r8-lr0.004-seed0"
    )
    rows = [evidence_of(cut, lambda rank: 0.1, 1e-3)]
    for seed in range(2):
        lost = Trial(rank=8, seed=seed, learning_rate=4e-3, lora_alpha=8.0)
        rows.append(evidence_of(lost, lambda rank: 0.1, 1e-3).assign(diverged=seed == 1))
        for rank, loss in ((2, 0.7), (8, 0.5)):
            trial = Trial(rank=rank, seed=seed, learning_rate=1e-3, lora_alpha=float(rank))
            rows.append(evidence_of(trial, lambda rank, loss=loss: loss, 1e-3))
    decision = decide(
        read_rank_results(pd.concat(rows), trained_at=8), MARGIN, CONFIDENCE, trained_at=8
    )
    assert decision.rank == 8
    assert [row.learning_rate for row in decision.table] == [1e-3, 1e-3]


def test_once_asks_again_for_a_first_seed_that_is_gone() -> None:
    asked = strategies()["once"](SearchConfig(ranks=RANKS, seeds=2), RULE, 0.7)
    start, leap = asked.propose(NOTHING)
    left = [(replace(start, seed=1), 0.5), (leap, 0.6)]
    evidence = pd.concat(
        [evidence_of(trial, lambda rank, loss=loss: loss, 1e-3) for trial, loss in left]
    )
    assert asked.propose(evidence) == [start]


@pytest.mark.parametrize("diverging", [0, 1])
def test_once_searches_rates_where_a_seed_diverges(diverging: int) -> None:
    asked = strategy("once", seeds=2, rates="auto")
    first = asked.propose(NOTHING)[0]
    before = [
        evidence_of(replace(first, seed=seed), lambda rank: 0.5, 1e-3) for seed in range(diverging)
    ]
    lost = evidence_of(replace(first, seed=diverging), lambda rank: 0.5, 1e-3).assign(diverged=True)
    _, trials = run(asked, lambda rank: 0.5, pd.concat([*before, lost]))
    trained = [
        trial
        for trial in trials
        if trial.truncated_from is None and trial.learning_rate != first.learning_rate
    ]
    rates = [trial.learning_rate for trial in trained if trial.seed == 0]
    assert min(rates) < first.learning_rate
    assert {trial.seed for trial in trained} == {0, 1}
