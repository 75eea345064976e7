"""More seeds for some ranks, each at the learning rate that it has."""

from rankwise.strategies.config import SearchConfig
from rankwise.strategies.more_seeds import MoreSeeds
from tests.strategies.simulation import RULE, make_strategy, needs_rank_8, run_sweep


def test_only_the_missing_seeds_of_the_ranks_are_trained_at_their_own_rates() -> None:
    grid = make_strategy("grid", (4, 8), seeds=2, rates="auto")
    evidence, _ = run_sweep(grid, needs_rank_8)
    strategy = MoreSeeds(SearchConfig(ranks=(8,), seeds=4, learning_rate="auto"), RULE)
    trials = strategy.propose(evidence)
    assert [(trial.rank, trial.seed) for trial in trials] == [(8, 2), (8, 3)]
    chosen = evidence[(evidence["rank"] == 8) & (evidence["seed"] == 1)]["learning_rate"]
    assert {trial.learning_rate for trial in trials} == set(chosen)
    keys = evidence[["rank", "learning_rate", "seed"]].drop_duplicates()
    assert strategy.expected_trials(evidence) == len(keys) + 2
