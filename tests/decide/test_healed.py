"""Which healed adapters take the place of their cut, on losses with a known truth."""

import numpy as np
import pandas as pd
import pytest

from rankwise.decide.evidence import HEALED, is_healed
from rankwise.decide.healed import holds, judged_adapters
from tests.factories import evidence_of


def adapters(
    rank: int, rate: float, costs: tuple[float, ...], healed: bool = False, examples: int = 400
) -> pd.DataFrame:
    """Return evidence of one adapter a seed, each so much worse than the full one of its seed."""
    frames = []
    for seed, cost in enumerate(costs):
        full = np.random.default_rng(seed).exponential(0.5, examples)
        noise = 0.05 * np.random.default_rng(100 * rank + seed).standard_normal(examples)
        losses = full + (cost + noise - noise.mean() if rank < 32 else 0.0)
        frames.append(evidence_of(rank, rate, seed, losses.tolist()))
    rows = pd.concat(frames)
    return rows.assign(**{HEALED: True}) if healed else rows


FULL = adapters(32, 1e-3, (0.0, 0.0))


@pytest.mark.parametrize(
    ("costs", "held"),
    [((0.0, 0.0), True), ((-0.1, 0.0), True), ((0.0, 0.018), False), ((0.0, 0.1), False)],
)
def test_adapters_hold_if_those_of_every_seed_are_within_the_margin(
    costs: tuple[float, ...], held: bool
) -> None:
    assert holds(adapters(4, 1e-3, costs), FULL, 0.02, 0.95) == held


def test_a_diverged_adapter_does_not_hold() -> None:
    lost = pd.concat([adapters(4, 1e-3, (0.0,)), evidence_of(4, 1e-3, 1, [])])
    assert not holds(lost, FULL, 0.02, 0.95)


@pytest.mark.parametrize(
    ("costs", "taken"), [((0.0, 0.0), True), ((0.0, 0.1), False), ((0.0,), False)]
)
def test_a_healed_adapter_replaces_its_cut_where_it_holds_with_every_seed(
    costs: tuple[float, ...], taken: bool
) -> None:
    cut, healed = adapters(4, 1e-3, (0.1, 0.1)), adapters(4, 3e-3, costs, healed=True)
    evidence = pd.concat([FULL, cut, healed], ignore_index=True)
    judged = judged_adapters(evidence, 32, 0.02, 0.95)
    assert set(judged.loc[judged["rank"] == 4, "learning_rate"]) == ({3e-3} if taken else {1e-3})
    assert is_healed(judged).any() == taken
    assert len(judged[judged["rank"] == 32]) == len(FULL)


def test_evidence_without_healed_adapters_stays() -> None:
    for trained_at in (None, 32):
        assert judged_adapters(FULL, trained_at, 0.02, 0.95) is FULL
