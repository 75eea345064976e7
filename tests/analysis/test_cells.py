"""Numbers in cells of text."""

import io

import numpy as np
import pandas as pd
import pytest

from rankwise.analysis.cells import read_numbers


@pytest.mark.parametrize(
    ("cells", "values", "spreads"),
    [
        (["54.0%", "54.1 %"], [0.54, 0.541], None),
        (["54.0 ± 0.4", "57 +/- .3"], [54, 57], [0.4, 0.3]),
        (["54.0±0.4%", "54.0% ± 0.4%"], [0.54, 0.54], [0.004, 0.004]),
        (["54.0 (0.4)", r"$54.0_{\pm 0.4}$"], [54, 54], [0.4, 0.4]),
        (["54.0 (±0.4)*", r"54.0 \pm 0.4"], [54, 54], [0.4, 0.4]),
        (["54,0 %", "53,1 %"], [0.54, 0.531], None),
        (["0.5", "54%"], [np.nan, 0.54], None),
        (["n/a", "0.5"], [np.nan, 0.5], None),
        (["2026-05-01", "r8"], [np.nan, np.nan], None),
        (["**54.0**", "53.1*"], [54, 53.1], None),
        (["1,234", "2,345"], [np.nan, np.nan], None),  # thousands, or not
    ],
)
def test_texts_are_read(cells: list[str], values: list[float], spreads: list[float] | None) -> None:
    numbers = read_numbers(pd.Series(cells))
    np.testing.assert_allclose(numbers.values, values, rtol=1e-12)
    assert numbers.has_spread == (spreads is not None)
    if spreads is not None:
        np.testing.assert_allclose(numbers.spreads, spreads, rtol=1e-12)


def test_decimal_commas_are_read_as_pandas_reads_them() -> None:
    text = "a\n0,92\n-1,5\n3\n"
    table = pd.read_csv(io.StringIO(text), sep=";")
    expected = pd.read_csv(io.StringIO(text), sep=";", decimal=",")
    assert read_numbers(table["a"]).values.tolist() == expected["a"].tolist()


def test_a_percent_sign_in_the_name_counts() -> None:
    percent = read_numbers(pd.Series([54.0, 53.0], name="Accuracy (%)"))
    assert (percent.values.tolist(), percent.is_percent) == ([0.54, 0.53], True)
    shares = read_numbers(pd.Series([0.54, 0.53], name="Accuracy (%)"))
    assert (shares.values.tolist(), shares.is_percent) == ([0.54, 0.53], False)


def test_numbers_and_booleans_stay_as_they_are() -> None:
    assert read_numbers(pd.Series([1.5, np.nan])).values.tolist()[0] == 1.5
    assert read_numbers(pd.Series([True, False])).values.tolist() == [1, 0]
    taken = read_numbers(pd.Series(["1 ± 2", "3 ± 4"])).take(np.array([1]))
    assert (taken.values.tolist(), taken.spreads.tolist()) == ([3], [4])
