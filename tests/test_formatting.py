"""Numbers as text."""

import math

import pytest

from rankwise.formatting import (
    clip,
    exact,
    figure,
    how_sure,
    interval,
    json_value,
    plain_bytes,
    seconds,
    share,
    signed,
    sure,
)


def test_numbers_are_written_with_their_units_and_intervals() -> None:
    assert [plain_bytes(n) for n in (0, 1023, 1024, 2.5 * 2**20, 150 * 2**30)] == [
        "0 B", "1023 B", "1.0 KiB", "2.5 MiB", "150 GiB",
    ]  # fmt: skip
    assert [seconds(value) for value in (0.04, 119.9, 600)] == ["0.0 s", "119.9 s", "10.0 min"]
    assert signed(0.01234) == "+0.0123"
    assert interval((0.1, 0.25)) == "[0.100, 0.250]"
    assert interval((0.1, 0.25), percent=True) == "[10.0, 25.0]"
    assert figure(0.5, (0.4, 0.6)) == "0.5000 ± 0.100"
    assert figure(0.765, (0.739, 0.791), percent=True) == "76.5 ± 2.6 %"
    assert figure(-0.01, (-0.02, 0.0), sign=True) == "-0.0100 ± 0.010"
    assert (figure(None), figure(0.5), figure(0.5, percent=True)) == ("", "0.5000", "50.0 %")


def test_intervals_hold_only_possible_values() -> None:
    assert figure(0.98, (0.94, 1.02), percent=True, possible=(0, 1)) == "98.0 % [94.0, 100.0]"
    assert figure(0.0006, (-0.1384, 0.1396), possible=(0, math.inf)) == "0.0006 [0.000, 0.140]"
    assert figure(0.65, (-1.228, 2.528), percent=True, possible=(0, 1)) == "65.0 % [0.0, 100.0]"
    assert figure(0.765, (0.733, 0.797), percent=True, possible=(0, 1)) == "76.5 ± 3.2 %"
    assert interval((0.94, 1.02), percent=True, possible=(0, 1)) == "[94.0, 100.0]"
    assert figure(0.5, (-0.7, 1.7), sign=True, possible=(-1, 1)) == "+0.5000 [-0.700, +1.000]"


def test_a_score_is_in_percent_if_it_is_a_share() -> None:
    assert (share(0.7654, percent=True), share(0.7654, percent=False)) == ("76.5 %", "0.7654")
    assert clip((-0.1, 0.5), (0.0, 1.0)) == (0.0, 0.5)


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"loss": math.nan, "bounds": (0.5, math.inf), "name": "nan", "rank": 8}
    assert json_value(value) == {"loss": None, "bounds": [0.5, None], "name": "nan", "rank": 8}


@pytest.mark.parametrize(
    ("reached", "asked", "text"),
    [
        (0.8399, 0.95, "83 %"),
        (0.9399, 0.95, "93 %"),
        (0.9499, 0.95, "94.9 %"),  # not "95 %", which was not reached
        (0.95, 0.95, "95.0 %"),
        (0.9987, 0.95, "99.8 %"),
        (0.29, 0.95, "29 %"),
        (0.795, 0.8, "79.5 %"),
        (0.0063, 0.95, "0 %"),
    ],
)
def test_a_confidence_is_rounded_down(reached: float, asked: float, text: str) -> None:
    assert sure(reached, asked) == text


def test_how_sure_names_what_was_asked_for() -> None:
    assert how_sure(0.838, 0.95) == "83 % sure, 95 % asked"
    assert how_sure(0.838, 0.975) == "83 % sure, 97.5 % asked"
    for unknown in (None, 0.0):
        assert how_sure(unknown, 0.9) == "how sure is not known, 90 % asked"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "0.001"), (5e-5, "5e-05"), (1, "1"), (2e6, "2e+06"), (1.0000001, "1.0000001")],
)
def test_a_number_is_told_from_its_neighbours_and_usual_ones_stay_short(
    value: float, text: str
) -> None:
    assert exact(value) == text
    assert float(exact(math.nextafter(value, math.inf))) == math.nextafter(value, math.inf)
