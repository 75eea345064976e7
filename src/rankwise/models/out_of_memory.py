"""Running out of memory: work that may, what it needed, and what the device has."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from rankwise.errors import RankwiseError
from rankwise.formatting import plain_bytes
from rankwise.models.main_memory import free_main_memory

Result = TypeVar("Result")


class OutOfMemory(Exception):
    """The device had too little memory, and no tensor of the attempt is left.

    Attributes:
        tokens: tokens of the pass that did not fit; None where it was no pass.
        intact: whether the trials are as they were before the attempt.
    """

    def __init__(self, message: str, tokens: int | None = None, *, intact: bool = True) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.intact = intact


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or main memory, had too little room."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    no_context = "CUDA error: out of memory" in str(error)  # other programs have filled the GPU
    is_kind = isinstance(error, torch.OutOfMemoryError)
    return is_kind or no_context or should_reduce_batch_size(error)


def attempt(
    work: Callable[[], Result], *, tokens: int | None = None, intact: bool = True
) -> Result:
    """Return what a function returns.

    Raises:
        OutOfMemory: it ran out of memory.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error)
    # Outside of the except block, because the error's traceback holds the tensors of the attempt.
    clear_device_cache(garbage_collection=True)
    raise OutOfMemory(message, tokens, intact=intact)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; an Apple GPU shares main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return free_main_memory()


def what_was_needed(error: OutOfMemory, device: torch.device) -> str:
    """Return the bytes that were wanted, from PyTorch's message, and those that a device has."""
    message = str(error)
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+) ?(\w+)", message)
    more = "more memory"
    if wanted is not None:
        number, unit = wanted.groups()
        more = f"{plain_bytes(int(number)) if unit == 'bytes' else f'{number} {unit}'} more"
    if "CPUAllocator" in message:
        free = plain_bytes(free_memory(torch.device("cpu")))
        return f"it needed {more}, and {free} are free"
    if device.type != "cuda":
        return f"it needed {more}"
    peak = torch.cuda.max_memory_allocated(device)
    _, total = torch.cuda.mem_get_info(device)
    return f"it needed {more} than {plain_bytes(peak)}, and the GPU has {plain_bytes(total)}"


def too_little_memory(
    error: OutOfMemory, device: torch.device, what: str, changes: str
) -> RankwiseError:
    """Return the error that says what did not fit a device, what it needed, and what to change."""
    return RankwiseError(
        f"out of memory: {what} does not fit ({what_was_needed(error, device)}); {changes}; "
        "complete trials are kept"
    )
