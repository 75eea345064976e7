"""What the evidence says about every rank."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from tests.decide.examples import make_evidence, make_results, seeded


def test_intervals_cover_the_true_means_and_gains() -> None:
    generator = np.random.default_rng(3)
    truth, covered, gains, replications = [0.55, 0.52, 0.50], 0, 0, 600
    for _ in range(replications):
        runs = make_results(
            truth, ranks=(4, 8, 16), examples=100, seed_noise=0.02, generator=generator
        )
        table = decide(runs, Rule(margin=0.02)).table
        for row, loss in zip(table, truth, strict=True):
            assert row.loss_ci is not None
            covered += row.loss_ci[0] <= loss <= row.loss_ci[1]
        gain = table[1].gain_over_previous
        assert gain is not None
        gains += gain.loss_ci[0] <= truth[0] - truth[1] <= gain.loss_ci[1]
    assert 0.93 <= covered / (3 * replications) <= 0.97
    assert 0.925 <= gains / replications <= 0.975


def test_chance_level_losses_are_compared_example_by_example() -> None:
    """Examples differ by far more than is learnt, and every one of them gains."""
    generator = np.random.default_rng(0)
    base = pd.Series(np.linspace(1, 5, 10), index=range(100, 110))
    rows = [
        {
            "rank": rank,
            "seed": seed,
            "example_id": example,
            "loss": loss - 0.2 + 0.005 * generator.normal(),
        }
        for rank in (4, 8)
        for seed in range(2)
        for example, loss in base.items()
    ]
    evidence = pd.DataFrame(rows)
    assert select(evidence, chance_loss=float(base.mean())).verdict == "undetermined"
    assert select(evidence, chance_loss=base).rank == 4
    rounded = evidence.assign(
        loss=evidence["example_id"].map(base) - 1e-6 * generator.random(len(evidence))
    )
    assert (
        select(rounded, chance_loss=base).verdict == "undetermined"
    )  # a millionth may be rounding
    with pytest.raises(RequestError, match="chance_loss: 2 of 10 held-out examples have none"):
        select(evidence, chance_loss=base.iloc[2:])


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": -0.1},
        {"margin": np.nan},
        {"confidence": 0},
        {"confidence": 1.2},
        {"chance_loss": -1},
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        select(make_evidence([0.5, 0.5, 0.5, 0.5]), **settings)


@pytest.mark.parametrize("settings", [{"noise": 0}, {"noise": np.nan}, {"score_margin": -1}])
def test_noise_or_score_margin_not_above_zero_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))):
        select(seeded({4: 0.5, 8: 0.5}, 3, 0.01), **settings)
