"""Tasks that run at the same time in threads, each on its share of the processor's cores."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_in_threads(
    tasks: Sequence[Callable[[threading.Event], Result]], cores: int
) -> list[Result]:
    """Run all tasks at the same time and return their results in order.

    Two trials on one core each finish sooner than one after the other on both, where the cores wait
    for each other after every product. PyTorch releases Python's lock while it computes.

    Args:
        tasks: each gets an event, which is set when another task fails or the user interrupts, and
            should then end soon.
        cores: threads that PyTorch uses within each task. A trial's last bits depend on it, because
            sums round differently.

    Raises:
        BaseException: the first that a task raised, once all tasks have ended.
    """
    stop = threading.Event()
    before = torch.get_num_threads()
    if len(tasks) == 1 and cores == before:
        return [tasks[0](stop)]
    try:
        with ThreadPoolExecutor(
            len(tasks), initializer=torch.set_num_threads, initargs=(cores,)
        ) as pool:
            try:
                futures = [pool.submit(task, stop) for task in tasks]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
                return [future.result() for future in futures]
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(before)  # one thread's setting changes MKL's for all threads
