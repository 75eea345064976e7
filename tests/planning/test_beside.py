import os
import threading

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.planning.beside import beside


def test_the_result_is_the_task_s_wherever_it_runs() -> None:
    assert beside(lambda: {"a": [1, 2], "b": {"c": None}})() == {"a": [1, 2], "b": {"c": None}}


def test_a_wrong_request_is_refused_here_as_there() -> None:
    def task() -> dict[str, object]:
        raise RequestError("no such thing")

    with pytest.raises(RequestError, match="no such thing"):
        beside(task)()


def test_it_does_not_fork_beside_another_thread() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert beside(lambda: {"pid": os.getpid()})() == {"pid": os.getpid()}
    finally:
        stop.set()
        other.join()


def test_it_does_not_fork_where_autograd_has_an_accelerator_s_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert beside(lambda: {"pid": os.getpid()})() == {"pid": os.getpid()}


def test_a_killed_process_is_made_up_for() -> None:
    parent = os.getpid()

    def task() -> dict[str, object]:
        if os.getpid() != parent:
            os._exit(9)
        return {"pid": os.getpid()}

    assert beside(task)() == {"pid": parent}
