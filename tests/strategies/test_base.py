"""Behaviour that all strategies share."""

import pandas as pd
import pytest

from tests.strategies.simulation import EXAMPLES, make_strategy, needs_rank_8, run_sweep


@pytest.mark.parametrize("rates", [(1e-3,), (1e-3, 2e-3), "auto"])
@pytest.mark.parametrize("name", ["escalate", "race", "once", "ends", "grid"])
def test_a_sweep_resumed_anywhere_runs_the_same_trials(name: str, rates: object) -> None:
    strategy = make_strategy(name, (2, 8, 32), seeds=2, rates=rates)
    whole, trials = run_sweep(strategy, needs_rank_8, noise=0.01)
    each = {
        trial.name: rows
        for trial, (_, rows) in zip(trials, whole.groupby(whole.index // EXAMPLES), strict=True)
    }
    for stop, trial in [*enumerate(trials)][1::3]:
        part = pd.concat([each[done.name] for done in trials[:stop]]).sample(
            frac=1, random_state=stop
        )
        assert strategy.propose(part)[0] == trial  # nor does the order of rows matter
    for lost in trials[:: len(trials) // 3]:  # a pack's trials may be finished in any order
        part = pd.concat([rows for done, rows in each.items() if done != lost.name])
        assert run_sweep(strategy, needs_rank_8, part, noise=0.01)[1] == [lost]
    assert strategy.expected_trials(whole) == len(trials) == len(each)
