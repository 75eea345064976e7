"""Work done ahead: in order, a few results at most, and no thread left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from rankwise.engine.fused.ahead import DEPTH, made_ahead


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_results_come_in_order_from_another_thread() -> None:
    made = list(made_ahead(lambda number: (number, threading.current_thread().name), range(3, 9)))
    assert [number for number, _ in made] == list(range(3, 9))
    assert all(name.startswith("rankwise-ahead") for _, name in made)
    assert list(made_ahead(str, range(0))) == []


def test_only_a_few_results_are_made_ahead() -> None:
    made: list[int] = []
    all_wanted = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if len(made) == 1 + DEPTH:
            all_wanted.set()
        return number

    with closing(made_ahead(make, range(100))) as results:
        assert next(results) == 0
        assert all_wanted.wait(60)
    assert made == list(range(1 + DEPTH))  # the thread has ended, so there will be no more


def test_an_error_comes_after_the_results_before_it() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("no batch 3")
        return number

    seen = []
    with pytest.raises(ValueError, match="no batch 3"):
        for number in made_ahead(make, range(10)):
            seen.append(number)
    assert seen == [0, 1, 2]


def test_ctrl_c_in_the_loop_ends_the_thread() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        closing(made_ahead(lambda number: number, range(100))) as results,
    ):
        for number in results:
            if number == 4:
                raise KeyboardInterrupt
