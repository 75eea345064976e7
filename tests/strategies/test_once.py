"""Once on simulated sweeps: which rates it tries, and which adapters it truncates."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from rankwise.decide.evidence import read_rank_results
from rankwise.decide.findings import Rule
from rankwise.decide.healed import judged_adapters
from rankwise.decide.selection import decide
from rankwise.engine.trial import Trial
from rankwise.strategies import strategies
from rankwise.strategies.config import SearchConfig
from tests.factories import NO_EVIDENCE
from tests.strategies.simulation import (
    CONFIDENCE,
    MARGIN,
    RANKS,
    RULE,
    make_strategy,
    needs_rank_8,
    run_sweep,
    simulate_trial,
)


def split(trials: list[Trial]) -> tuple[list[Trial], list[Trial], list[Trial]]:
    """Return the trials that were trained from new values, truncated and healed."""
    cut = [trial for trial in trials if trial.truncated_from is not None]
    healed = [trial for trial in trials if trial.starts_from is not None]
    return [trial for trial in trials if trial not in cut + healed], cut, healed


def test_once_trains_the_largest_rank_and_truncates_it_to_the_others() -> None:
    _, trials = run_sweep(make_strategy("once", seeds=2, rates=(1e-3, 2e-3)), lambda rank: 0.5)
    trained, truncated, healed = split(trials)
    assert {trial.rank for trial in trained} == {32}
    assert len(trained) == 3  # two rates, and the second seed at the better one
    assert sorted(trial.rank for trial in truncated) == sorted(2 * RANKS[:-1])
    for trial in truncated:
        assert trial.truncated_from == f"r32-lr{trial.learning_rate:g}-seed{trial.seed}"
        assert trial.lora_alpha == trial.rank  # the scaling stays
    assert healed == []  # all cuts hold


def test_the_cuts_end_at_the_first_rank_that_fails_and_that_rank_is_healed() -> None:
    _, trials = run_sweep(make_strategy("once", seeds=2), needs_rank_8)
    trained, truncated, healed = split(trials)
    assert [trial.seed for trial in trained] == [0, 1]
    assert [trial.rank for trial in truncated] == [16, 8, 4, 16, 8, 4]
    assert [(trial.rank, trial.seed) for trial in healed] == [(4, 0), (4, 1)]
    for cut, trial in zip([truncated[2], truncated[5]], healed, strict=True):
        assert trial.starts_from == cut.name
        assert (trial.lora_alpha, trial.share_of_steps) == (cut.lora_alpha, 0.1)
        assert trial.learning_rate == pytest.approx(0.25e-3 * (32 / 4) ** 0.5, rel=1e-2)


@pytest.mark.parametrize(("rates", "healing"), [((1e-3,), 1.005e-3), ((1e-3, 1.005e-3), 1.006e-3)])
def test_a_healed_trial_is_told_from_all_cuts(rates: tuple[float, ...], healing: float) -> None:
    """A quarter of the law's rate at a 16th of the rank is the rate of the source."""
    strategy = make_strategy("once", (2, 32), seeds=1, rates=rates)
    _, trials = run_sweep(strategy, lambda r: 0.5 + 0.1 * (r < 32), noise=0.0)
    _, (cut,), (healed,) = split(trials)
    assert cut.learning_rate == 1e-3
    assert healed.learning_rate == healing


def test_a_source_may_come_to_the_rate_at_which_others_were_healed() -> None:
    """Rank 8 of 32 is healed at half the rate: that of all trials once a later seed diverges."""
    evidence = NO_EVIDENCE
    strategy = make_strategy("once", (8, 32), seeds=1, rates="auto")
    best = strategy.propose(NO_EVIDENCE)[0].learning_rate

    def run(evidence: pd.DataFrame) -> tuple[pd.DataFrame, list[Trial]]:
        done = []
        while trials := strategy.propose(evidence):
            trial = trials[0]
            loss = 0.5 + 0.1 * (trial.rank == 8) + 0.01 * abs(math.log2(trial.learning_rate / best))
            new = simulate_trial(trial, lambda _, loss=loss: loss, 0.0)
            new["diverged"] = trial.learning_rate >= best and trial.seed == 1
            evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
            done.append(trial)
        return evidence, done

    evidence, trials = run(evidence)
    (healed,) = split(trials)[2]
    strategy = make_strategy("once", (8, 32), seeds=3, rates="auto")
    evidence, trials = run(evidence)
    cuts = split(trials)[1][-3:]  # before them, cuts at a rate that diverged later
    assert [(cut.rank, cut.seed) for cut in cuts] == [(8, 0), (8, 1), (8, 2)]
    assert cuts[0].learning_rate == pytest.approx(healed.learning_rate, rel=0.01)
    assert not evidence.duplicated(["rank", "learning_rate", "seed", "example_id"]).any()


def test_nothing_is_healed_where_the_trainer_cannot_start_from_a_cut() -> None:
    strategy = make_strategy("once", seeds=2)
    strategy.can_heal = False
    evidence, trials = run_sweep(strategy, needs_rank_8)
    assert split(trials)[2] == []
    assert strategy.expected_trials(evidence) == len(trials)


@pytest.mark.parametrize(("after", "rank"), [(0.505, 4), (0.59, 8), (0.46, 4)])
def test_a_healed_rank_is_kept_where_it_holds(after: float, rank: int) -> None:
    strategy = make_strategy("once", seeds=2)
    evidence = NO_EVIDENCE
    while trials := strategy.propose(evidence):
        truth = needs_rank_8 if trials[0].starts_from is None else lambda rank: after
        new = simulate_trial(trials[0], truth, 1e-3)
        evidence = pd.concat([evidence, new], ignore_index=True) if len(evidence) else new
    judged = judged_adapters(evidence, 32, MARGIN, CONFIDENCE)
    rule = Rule(margin=MARGIN, confidence=CONFIDENCE, trained_at=32)
    decision = decide(read_rank_results(judged, trained_at=32), rule)
    assert decision.rank == rank
    assert ("after the cut" in decision.answer) == (rank == 4)


def test_more_seeds_reach_the_cuts_and_healed_adapters_of_the_others() -> None:
    evidence, _ = run_sweep(make_strategy("once", seeds=2), needs_rank_8)
    _, more = run_sweep(make_strategy("once", seeds=3), needs_rank_8, evidence)
    trained, truncated, healed = split(more)
    assert [trial.seed for trial in more] == [2] * len(more)
    assert [trial.rank for trial in trained] == [32]
    assert [trial.rank for trial in truncated] == [16, 8, 4]
    assert [trial.rank for trial in healed] == [4]


def run_at_rates(
    losses: dict[float, float], seeds: int, chance: float | None = None
) -> tuple[list[tuple[float, int]], list[Trial]]:
    """Run once at a largest rank of 64; return its trainings, as rate and seed, and its cuts.

    Args:
        losses: loss at each learning rate; a cut has that of its source.
        seeds: number of seeds.
        chance: chance-level loss.
    """
    strategy = strategies()["once"](SearchConfig(ranks=(4, 64), seeds=seeds), RULE, chance)
    evidence, trials = NO_EVIDENCE, []
    while proposed := strategy.propose(evidence):
        loss = losses[proposed[0].learning_rate]
        rows = simulate_trial(proposed[0], lambda rank, loss=loss: loss, 1e-3)
        evidence = pd.concat([evidence, rows], ignore_index=True) if len(evidence) else rows
        trials.append(proposed[0])
    assert strategy.expected_trials(evidence) == len(trials)
    trained, cut, _ = split(trials)
    return [(trial.learning_rate, trial.seed) for trial in trained], cut


@pytest.mark.parametrize(
    ("losses", "seeds", "trained", "kept"),
    [
        # The higher rate is worse: two trainings.
        ({2.5e-4: 0.50, 5e-4: 0.60}, 2, [(2.5e-4, 0), (5e-4, 1)], [(2.5e-4, 0)]),
        # It is better, but by no more than the margin of 0.02.
        ({2.5e-4: 0.50, 5e-4: 0.485}, 2, [(2.5e-4, 0), (5e-4, 1)], [(5e-4, 1)]),
        # It is better by more, and so is the next.
        (
            {2.5e-4: 0.70, 5e-4: 0.60, 1e-3: 0.50, 2e-3: 0.80},
            2,
            [(2.5e-4, 0), (5e-4, 1), (1e-3, 0), (2e-3, 1)],
            [(1e-3, 0)],
        ),
        ({2.5e-4: 0.50, 5e-4: 0.60}, 1, [(2.5e-4, 0), (5e-4, 0)], [(2.5e-4, 0)]),
        # With three seeds the rate found gets them all.
        (
            {2.5e-4: 0.60, 5e-4: 0.50, 1e-3: 0.60},
            3,
            [(2.5e-4, 0), (5e-4, 0), (1e-3, 0), (5e-4, 1), (5e-4, 2)],
            [(5e-4, 0), (5e-4, 1), (5e-4, 2)],
        ),
    ],
)
def test_once_keeps_the_better_of_two_rates_and_goes_up_while_that_pays(
    losses: dict[float, float],
    seeds: int,
    trained: list[tuple[float, int]],
    kept: list[tuple[float, int]],
) -> None:
    """It starts at 2e-3 / sqrt(64)."""
    trainings, cuts = run_at_rates(losses, seeds)
    assert sorted(trainings) == sorted(trained)
    assert [(cut.learning_rate, cut.seed) for cut in cuts] == kept


def test_once_searches_both_ways_where_neither_rate_learns() -> None:
    rates = [float(f"{2.5e-4 * 2.0**step:.3g}") for step in range(-3, 5)]
    losses = dict.fromkeys(rates, 0.7) | {6.25e-5: 0.4}
    trainings, cuts = run_at_rates(losses, 2, chance=0.7)
    assert (6.25e-5, 0) in trainings
    assert {cut.learning_rate for cut in cuts} == {6.25e-5}


def test_truncations_at_a_rate_that_diverges_later_do_not_count() -> None:
    """Rank 2 looks best at the diverged rate, but the trained rank is judged at the other one."""
    stray = Trial(
        rank=2, seed=0, learning_rate=4e-3, lora_alpha=2.0, truncated_from="r8-lr0.004-seed0"
    )
    rows = [simulate_trial(stray, lambda rank: 0.1, 1e-3)]
    for seed in range(2):
        lost = Trial(rank=8, seed=seed, learning_rate=4e-3, lora_alpha=8.0)
        rows.append(simulate_trial(lost, lambda rank: 0.1, 1e-3).assign(diverged=seed == 1))
        for rank, loss in ((2, 0.7), (8, 0.5)):
            trial = Trial(rank=rank, seed=seed, learning_rate=1e-3, lora_alpha=float(rank))
            rows.append(simulate_trial(trial, lambda rank, loss=loss: loss, 1e-3))
    decision = decide(
        read_rank_results(pd.concat(rows), trained_at=8),
        Rule(margin=MARGIN, confidence=CONFIDENCE, trained_at=8),
    )
    assert decision.rank == 8
    assert [row.learning_rate for row in decision.table] == [1e-3, 1e-3]


def test_once_proposes_a_lost_trial_again() -> None:
    strategy = strategies()["once"](SearchConfig(ranks=RANKS, seeds=2), RULE, 0.7)
    low, high = strategy.propose(NO_EVIDENCE)
    kept = simulate_trial(high, lambda rank: 0.5, 1e-3)
    assert strategy.propose(kept) == [low]


@pytest.mark.parametrize("seeds", [2, 3])
def test_once_searches_lower_rates_after_all_have_diverged(seeds: int) -> None:
    """With three seeds the second one diverges at the rates that the first one found."""
    strategy = make_strategy("once", seeds=seeds, rates="auto")
    first = strategy.propose(NO_EVIDENCE)
    lost = [*first, *(replace(trial, seed=1) for trial in first)]
    rows = [simulate_trial(trial, lambda rank: 0.5, 1e-3) for trial in lost]
    for trial, table in zip(lost, rows, strict=True):
        table["diverged"] = seeds == 2 or trial.seed == 1
    _, trials = run_sweep(strategy, lambda rank: 0.5, pd.concat(rows))
    (rate,) = {cut.learning_rate for cut in split(trials)[1]}
    assert rate < min(trial.learning_rate for trial in first)
