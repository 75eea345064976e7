"""What is said to settle a question does settle it."""

import numpy as np
import pytest

from rankwise import select
from rankwise.decide.evidence import RankResults
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from tests.decide.examples import RANKS, make_evidence, make_losses, seeded

RULE = Rule(margin=0.02, no_prior=True)


def as_results(values: dict[int, np.ndarray]) -> list[RankResults]:
    results = []
    for rank, losses in values.items():
        seeds, examples = tuple(range(len(losses))), np.arange(losses.shape[1])
        means = (float(losses.mean()),)
        one = RankResults(rank, 1e-3, (1e-3,), seeds, examples, losses, losses, None, 0, means)
        results.append(one)
    return results


def test_a_step_settles_it_as_often_as_it_is_given_a_chance() -> None:
    """The seeds that a step asks for are added to those that were there; the truth is known."""
    generator = np.random.default_rng(1)
    settled, chances = [], []
    for _ in range(150):
        truth = 0.5 + generator.uniform(0, 0.03, size=3)
        values = make_losses(
            list(truth), seeds=8, examples=300, seed_noise=0.008, generator=generator
        )
        first = {rank: one[:2] for rank, one in zip(RANKS[:3], values, strict=True)}
        steps = decide(as_results(first), RULE).next
        step = next((step for step in steps if step.action == "seeds"), None)
        if step is None:
            continue
        for rank, one in zip(RANKS[:3], values, strict=True):
            if rank in step.ranks:
                first[rank] = one[: step.seeds]
        settled.append(decide(as_results(first), RULE).rank is not None)
        chances.append(step.probability or 0.0)
    assert len(settled) >= 50
    error = np.sqrt(np.mean(settled) * (1 - np.mean(settled)) / len(settled))
    assert np.mean(settled) == pytest.approx(np.mean(chances), abs=3 * error)


def test_seeds_are_asked_for_the_ranks_that_matter_alone() -> None:
    evidence = make_evidence([0.9, 0.51, 0.5, 0.5], seeds=2, examples=400, seed_noise=0.01)
    steps = [step for step in select(evidence).next if step.action == "seeds"]
    assert steps
    assert all(4 not in step.ranks for step in steps[:1])  # rank 4 is out of the race


def test_no_seeds_are_offered_for_adapters_that_are_asked_for_themselves() -> None:
    evidence = make_evidence([0.53, 0.51, 0.5, 0.5], seeds=2, examples=60)
    steps = select(evidence, trained_at=32).next
    assert "seeds" not in {step.action for step in steps}


@pytest.mark.parametrize("replications", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_a_margin_of_the_detectable_difference_clears_an_equal_rank_in_four_cases_of_five(
    replications: int,
) -> None:
    """A margin as wide as the detectable difference clears a rank that equals the best in four cases of five."""
    cleared = []
    for rng in range(replications):
        table = seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)
        margin = (
            0.01 * np.sqrt(2 / 4) * (2.353 + 0.978)
        )  # of the true noise, at 3 degrees of freedom
        cleared.append(select(table, margin=margin).table[0].non_inferior)
    errors = 3 * np.sqrt(0.8 * 0.2 / replications)  # three Monte Carlo standard errors
    assert np.mean(cleared) == pytest.approx(0.8, abs=errors)
    detectable = [
        select(seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)).detectable_difference
        for rng in range(replications)
    ]
    assert np.median([value for value in detectable if value]) == pytest.approx(margin, rel=0.15)
