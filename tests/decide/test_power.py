"""What is said to settle a question does settle it."""

import numpy as np
import pytest

from rankwise import select
from rankwise.decide.findings import Rule
from rankwise.decide.selection import decide
from tests.decide.examples import make_results, seeded


@pytest.mark.parametrize(("examples", "seed_noise"), [(100, 0.004), (300, 0.008)])
def test_the_advised_step_settles_it_in_four_cases_of_five(
    examples: int, seed_noise: float
) -> None:
    generator = np.random.default_rng(1)
    settled = []
    for _ in range(100):
        first = make_results(
            [0.55, 0.5, 0.5, 0.5],
            seeds=2,
            examples=examples,
            seed_noise=seed_noise,
            generator=generator,
        )
        advice = decide(first, Rule(margin=0.02)).next
        if advice is None:
            continue
        seen = [float(run.cost.mean()) for run in first]  # these differences are to persist
        sizes = {"seeds": advice.seeds, "examples": advice.held_out_examples}
        again = make_results(seen, seed_noise=seed_noise, generator=generator, **sizes)
        settled.append(decide(again, Rule(margin=0.02)).rank is not None)
    assert len(settled) >= 40
    # 80 % and two Monte Carlo standard errors
    assert np.mean(settled) >= 0.8 - 2 * np.sqrt(0.8 * 0.2 / len(settled))


def test_a_margin_of_the_detectable_difference_clears_an_equal_rank_in_four_cases_of_five() -> None:
    """A margin as wide as the detectable difference clears a rank that equals the best in four cases of five."""
    cleared = []
    for rng in range(300):
        table = seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)
        margin = (
            0.01 * np.sqrt(2 / 4) * (2.353 + 0.978)
        )  # of the true noise, at 3 degrees of freedom
        cleared.append(select(table, margin=margin).table[0].non_inferior)
    assert np.mean(cleared) == pytest.approx(0.8, abs=0.07)
    detectable = [
        select(seeded({4: 0.5, 8: 0.5}, 4, 0.01, rng=rng)).detectable_difference
        for rng in range(300)
    ]
    assert np.median([value for value in detectable if value]) == pytest.approx(margin, rel=0.15)
