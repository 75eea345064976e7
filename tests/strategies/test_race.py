"""Race on simulated sweeps: which ranks drop out, and when it ends."""

from tests.strategies.simulation import RANKS, decide_on, make_strategy, needs_rank_8, run_sweep


def test_race_stops_as_soon_as_the_decision_stands() -> None:
    evidence, trials = run_sweep(make_strategy("race", seeds=6), needs_rank_8)
    assert {trial.seed for trial in trials} == {0, 1}  # never before a second seed
    assert decide_on(evidence).rank == 8


def test_race_drops_only_ranks_that_are_shown_to_be_worse() -> None:
    """Ranks above 4 differ by less than the noise of a seed, so they race on."""
    evidence, _ = run_sweep(
        make_strategy("race", seeds=4), lambda rank: {2: 1.5, 4: 1.4}.get(rank, 0.5), noise=0.03
    )
    seeds = evidence.groupby("rank")["seed"].nunique()
    assert seeds[2] == seeds[4] == 2
    assert seeds[8] == seeds[16] == seeds[32] > 2


def test_race_ends_when_the_seeds_are_used_up() -> None:
    evidence, trials = run_sweep(make_strategy("race", seeds=3), lambda rank: 0.5, noise=0.2)
    assert decide_on(evidence).verdict == "undetermined"
    assert len(trials) == 3 * len(RANKS)
