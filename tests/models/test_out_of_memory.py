"""Out of memory is noticed in any device's words, and leaves nothing behind."""

import gc
import re
import weakref

import psutil
import pytest
import torch

from rankwise.models.out_of_memory import OutOfMemory, attempt, free_memory, what_was_needed


def test_other_errors_are_not_caught() -> None:
    def wrong() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        attempt(wrong)


def test_main_memory_counts_too() -> None:
    def fails() -> None:
        raise MemoryError

    with pytest.raises(OutOfMemory):
        attempt(fails)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
        "MPS backend out of memory (MPS allocated: 5 GB)",
        "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    ],
)
def test_no_tensor_of_a_failed_attempt_is_left(message: str) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def fails() -> None:
        large = torch.zeros(1000)
        kept.append(weakref.ref(large))
        raise RuntimeError(message)

    gc.disable()  # its memory must not wait for the garbage collector
    try:
        with pytest.raises(OutOfMemory) as caught:
            attempt(fails, tokens=12)
        assert kept[0]() is None
    finally:
        gc.enable()
    assert (caught.value.tokens, caught.value.intact) == (12, True)


def test_a_cpu_that_is_asked_for_too_much_says_what_was_wanted_and_what_is_free() -> None:
    with pytest.raises(OutOfMemory) as caught:
        attempt(lambda: torch.empty(2**50, dtype=torch.uint8))
    total = psutil.virtual_memory().total
    assert 0 < free_memory(torch.device("cpu")) < total
    assert re.fullmatch(
        r"it needed 1024 TiB more, and [\d.]+ \w+ are free",
        what_was_needed(caught.value, torch.device("cpu")),
    )


def test_the_figures_are_those_of_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be the current one."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: (1 + gpu.index) * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (0, (2 + gpu.index) * 2**30))
    error = OutOfMemory("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total of")
    assert what_was_needed(error, torch.device("cuda", 1)) == (
        "it needed 20.00 MiB more than 2.0 GiB, and the GPU has 3.0 GiB"
    )
