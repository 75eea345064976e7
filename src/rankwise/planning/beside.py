"""A computation beside another one, on a second core."""

import json
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

from rankwise.errors import RequestError


def beside(task: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Begin a task in a forked process and return a function that waits for its result.

    A fork knows all that this process knows, imported libraries included. It is taken only where it is safe and helps:
    on Linux, with no other Python thread, a second core, and no accelerator, whose presence gives autograd threads that
    a fork lacks. Elsewhere the task runs when its result is asked for.

    Args:
        task: returns JSON values.

    Raises:
        RequestError: by the returned function, where the task raised it.
    """
    if (
        not sys.platform.startswith("linux")
        or threading.active_count() > 1
        or (os.cpu_count() or 1) < 2
    ):
        return task
    if torch.accelerator.is_available():
        return task
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        answer: dict[str, Any]
        try:
            answer = {"result": task()}
        except RequestError as error:
            answer = {"error": str(error)}
        there.send_bytes(json.dumps(answer).encode())

    process = context.Process(target=run, daemon=True)
    process.start()
    there.close()

    def result() -> dict[str, Any]:
        try:
            answer = json.loads(here.recv_bytes())
        except EOFError:  # killed, for want of memory, say
            return task()
        finally:
            process.join()
        if "error" in answer:
            raise RequestError(answer["error"])
        return answer["result"]

    return result
