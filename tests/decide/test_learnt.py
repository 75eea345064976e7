"""Whether adapters learnt anything is asked of each adapter, not of the spread over seeds."""

import re

import numpy as np
import pandas as pd
import pytest

from rankwise import select
from rankwise.decide.learnt import learnt_by_trial
from rankwise.decide.pairwise import Comparison

CHANCE = 0.69


def two_seeds(first: float, second: float, other: float = 0.16) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    means = {(4, 0): first, (4, 1): second, (8, 0): other, (8, 1): other + 0.01}
    rows = [
        {"rank": rank, "seed": seed, "example_id": example, "loss": loss}
        for (rank, seed), mean in means.items()
        for example, loss in enumerate(mean + 0.1 * generator.normal(size=200))
    ]
    return pd.DataFrame(rows)


def test_seeds_that_differ_widely_have_learnt_all_the_same() -> None:
    decision = select(two_seeds(0.16, 0.28), chance_loss=CHANCE)
    assert "learnt anything" not in decision.answer
    assert decision.recommended == 8


def test_a_seed_that_learnt_nothing_is_named() -> None:
    decision = select(two_seeds(0.16, 0.70), chance_loss=CHANCE)
    assert any("Seed 1 of rank 4 learnt nothing" in caveat for caveat in decision.caveats)
    assert decision.recommended == 8


def test_a_seed_that_learnt_much_less_is_named_with_its_share() -> None:
    decision = select(two_seeds(0.16, 0.43), chance_loss=CHANCE)
    [caveat] = [one for one in decision.caveats if "much worse" in one]
    assert re.match(r"Seed 1 is much worse than seed 0 at rank 4: it learnt (4|5)\d% as", caveat)
    assert not [
        one
        for one in select(two_seeds(0.16, 0.2), chance_loss=CHANCE).caveats
        if "much worse" in one
    ]


@pytest.mark.parametrize("adapters", [2, 20])
def test_adapters_that_learnt_nothing_seldom_seem_to_have(adapters: int) -> None:
    """The intervals hold for all adapters together, however many there are."""
    generator = np.random.default_rng(0)
    wrong, replications = 0, 400
    for _ in range(replications):
        losses = {
            rank: CHANCE + generator.normal(size=(2, 100)) * 0.3
            for rank in range(1, adapters // 2 + 1)
        }
        comparison = Comparison(losses, dict.fromkeys(losses, (0, 1)))
        learnt = learnt_by_trial(comparison, np.arange(100), CHANCE, 0.95)
        wrong += any(one.is_shown for trials in learnt.values() for one in trials)
    assert wrong / replications <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / replications)
