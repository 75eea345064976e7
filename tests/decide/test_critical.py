import numpy as np
import pytest
from scipy import stats

from rankwise.decide.critical import LEVELS, critical_table, dunnett_critical


@pytest.mark.parametrize("comparisons", [1, 2, 3, 5])
@pytest.mark.parametrize("df", [3, 10, np.inf])
def test_critical_values_against_the_multivariate_t(comparisons: int, df: float) -> None:
    critical = dunnett_critical(comparisons, df, 0.95)
    correlation = np.full((comparisons, comparisons), 0.5) + 0.5 * np.eye(comparisons)
    joint = stats.multivariate_t(shape=correlation, df=df, seed=0) if np.isfinite(df) else None
    if joint is None:
        joint = stats.multivariate_normal(cov=correlation, seed=0)
    assert joint.cdf(np.full(comparisons, critical)) == pytest.approx(0.95, abs=2e-3)


def test_critical_values_match_dunnetts_table() -> None:
    # Dunnett 1955, table 1a (one-sided, 95 %): 10 degrees of freedom, 1, 2 and 3 treatments; then infinitely many.
    assert [round(dunnett_critical(k, 10, 0.95), 2) for k in (1, 2, 3)] == [1.81, 2.15, 2.34]
    assert [round(dunnett_critical(k, np.inf, 0.95), 2) for k in (1, 2, 3)] == [1.64, 1.92, 2.06]


@pytest.mark.parametrize("df", [1, 3])
@pytest.mark.parametrize("confidence", [0.01, 0.03, 0.5, 0.99])
def test_one_comparison_equals_a_t_quantile_at_any_confidence(df: int, confidence: float) -> None:
    assert dunnett_critical(1, df, confidence) == pytest.approx(
        stats.t.ppf(confidence, df), rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("df", [2.0, 5.4, pytest.param(30.0, marks=pytest.mark.slow), np.inf])
def test_the_table_holds_the_critical_values_of_every_level(df: float) -> None:
    table = critical_table(5, df)
    usual = (LEVELS > 0.05) & (LEVELS < 0.99)
    exact = [[dunnett_critical(m, df, float(level)) for m in range(1, 6)] for level in LEVELS]
    assert table[usual] == pytest.approx(np.array(exact)[usual], rel=0.01, abs=0.005)
