"""Tasks side by side in threads, each on its share of the processor's cores."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(
    tasks: Sequence[Callable[[threading.Event], Result]], threads: int
) -> list[Result]:
    """Run tasks at once and return their results, in order.

    Two trials on one core each finish sooner than one after the other on both: the cores need not wait for each other
    at the end of every product. Python is no hindrance: PyTorch gives its lock back while it computes.

    Args:
        tasks: each is given an event and should end soon once it is set: another task has failed, or the user has
            interrupted.
        threads: for PyTorch within each task. Sums round differently on another number of threads, so a trial's last
            bits depend on it.

    Raises:
        BaseException: the first that a task raised, when all tasks have ended.
    """
    stop = threading.Event()
    before = torch.get_num_threads()
    if len(tasks) == 1 and threads == before:
        return [tasks[0](stop)]
    try:
        with ThreadPoolExecutor(
            len(tasks), initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool:
            futures = [pool.submit(task, stop) for task in tasks]
            try:
                ended = wait(futures, return_when=FIRST_EXCEPTION).done
                for future in ended:
                    future.result()
            except BaseException:
                stop.set()
                raise
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(before)  # a thread's setting reaches MKL's for all threads
