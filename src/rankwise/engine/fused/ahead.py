"""Work that another thread does ahead, so that a device need not wait for the host."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

DEPTH = 2  # results that lie ready: one to take next, and one more in case a step is short


def made_ahead(make: Callable[[int], Result], numbers: range) -> Generator[Result, None, None]:
    """Yield ``make(number)`` for each number in order, made by another thread before it is asked.

    An error in ``make`` is raised where its result would have been yielded. The thread ends with
    the iterator: close it (`contextlib.closing`) where the loop may end early.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, "rankwise-ahead") as thread:
        try:
            for number in numbers:
                waiting.append(thread.submit(make, number))
                if len(waiting) > DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
