"""No damaged input has another outcome than success or one line; make torture runs many more."""

import pytest

from tests.torture.inputs import READERS
from tests.torture.outcomes import good_input, outcome

SLOW = {"sweep-directory", "plan-requests", "gguf", "config-of-a-plan", "config-of-vision"}
"""Readers of which an input takes more than 50 ms."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 4) for name in READERS if name not in SLOW),
        *(pytest.param(name, 40, marks=pytest.mark.slow) for name in READERS),
    ],
)
def test_damaged_inputs_are_read_or_refused_in_one_line(name: str, count: int) -> None:
    with good_input(name) as (good, place):
        found = {number: outcome(name, number, good, place) for number in range(count)}
    assert {number: what for number, what in found.items() if what not in ("read", "refused")} == {}
