"""What the evidence says about every rank, and the rank or the next step that follows."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankwise import RequestError, select
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from tests.decide.examples import make_evidence, make_results, seeded


@pytest.mark.parametrize("replications", [100, pytest.param(600, marks=pytest.mark.slow)])
def test_intervals_cover_the_true_means_and_gains(replications: int) -> None:
    generator = np.random.default_rng(3)
    truth, covered, gains = [0.55, 0.52, 0.50], 0, 0
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
    errors = 3 * np.sqrt(0.05 * 0.95 / replications)  # three Monte Carlo standard errors
    assert covered / (3 * replications) == pytest.approx(0.95, abs=errors)
    assert gains / replications == pytest.approx(0.95, abs=errors)


def test_chance_level_losses_are_compared_example_by_example() -> None:
    """Examples differ by far more than is learnt, and every one of them gains."""
    generator = np.random.default_rng(0)
    base = pd.Series(np.linspace(1, 5, 30), index=range(100, 130))
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
    with pytest.raises(RequestError, match="chance_loss: 2 of 30 held-out examples have none"):
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


def test_an_open_question_comes_with_what_would_settle_it() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.49], seeds=2, examples=100, seed_noise=0.01)
    decision = select(evidence, margin=0.01)
    assert (decision.verdict, decision.rank) == ("undetermined", None)
    confidences = {row.rank: row.confidence_within_margin or 0 for row in decision.table}
    doubt = 1 - max(confidences.values())
    nearly = [rank for rank, confidence in confidences.items() if 1 - confidence <= 1.1 * doubt]
    assert decision.recommended == min(nearly)
    assert decision.next
    for step in decision.next:
        assert step.advice
        assert step.action == "margin" or (step.probability or 0) >= 0.1
        assert step.action != "seeds" or 2 < step.seeds <= 8
    worths = [
        (step.probability or 0) / (len(step.ranks) * (step.seeds - 2))
        for step in decision.next
        if step.action == "seeds"
    ]
    assert worths == sorted(worths, reverse=True)  # what brings most for a trial comes first


def test_no_rank_is_chosen_if_none_has_learnt_anything() -> None:
    chance = float(np.log(2))
    evidence = make_evidence([chance + 0.05] * 4, example_noise=0.05)
    assert select(evidence).rank == 4  # they are alike indeed
    decision = select(evidence, chance_loss=chance)
    assert (decision.verdict, decision.rank, decision.next, decision.diagnosis) == (
        "undetermined",
        None,
        (),
        (),
    )
    assert decision.recommended is None
    assert "no adapter is shown to have learnt anything" in decision.answer
    assert "guessing by the classes' shares gives 0.6931" in decision.evidence
    assert "lower ones where the loss is above" in decision.answer
    below = select(make_evidence([chance - 0.005] * 4, example_noise=0.5), chance_loss=chance)
    assert below.verdict == "undetermined"
    assert "more seeds or held-out examples" in below.answer
    # One rank that learns is enough to choose by.
    learnt = make_evidence([chance, chance, chance, 0.5], example_noise=0.05)
    assert select(learnt, chance_loss=chance) == select(learnt)
    assert select(learnt, chance_loss=chance).rank == 32


def test_the_confirmation_says_when_the_score_is_no_lower() -> None:
    evidence = make_evidence([0.5, 0.5, 0.5, 0.5], examples=2000)
    evidence["score"] = np.where(
        evidence["rank"] == 4, 1.0, (evidence["example_id"] % 10 > 0).astype(float)
    )
    confirmation = select(evidence).confirmation
    assert confirmation is not None
    assert confirmation.bound < 0
    assert (
        confirmation.reason
        == "The task score confirms it: rank 4 scores no lower than the best other rank."
    )
