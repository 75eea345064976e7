"""The prior of how much seeds matter: its estimate, and the moderated variance."""

import numpy as np
import pytest
from benchmarks.seed_prior import Recorded, estimate, fit, recorded_sweeps
from scipy import stats

from rankwise.decide.seed_prior import SeedPrior, seed_prior


def test_the_prior_is_the_one_that_the_recorded_sweeps_give() -> None:
    df, deviation = estimate(recorded_sweeps())
    prior = seed_prior()
    assert (prior.df, prior.relative_sd) == (round(df, 2), round(deviation, 4))


@pytest.mark.parametrize(("df", "sd"), [(4.0, 0.02), (10.0, 0.005)])
def test_the_fit_finds_the_prior_that_variances_were_drawn_from(df: float, sd: float) -> None:
    generator = np.random.default_rng(0)
    sweeps = []
    for _ in range(4000):
        variance = sd**2 * df / stats.chi2.rvs(df, random_state=generator)
        seen = variance * stats.chi2.rvs(5, random_state=generator) / 5
        sweeps.append(Recorded("task", seen, 5, 10))
    assert fit(sweeps) == pytest.approx((df, sd), rel=0.15)


def test_the_moderated_variance_weighs_both_by_their_degrees_of_freedom() -> None:
    prior = SeedPrior("test", 2.0, 0.02)
    variance, df = prior.moderate(1e-4, 3.0, 0.5)
    assert df == 5
    assert variance == pytest.approx((2 * 0.01**2 + 3 * 1e-4) / 5)
