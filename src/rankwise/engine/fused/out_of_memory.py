"""What to do when a device has too little memory: train fewer trials at once, then fewer tokens."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from rankwise.errors import RankwiseError
from rankwise.formatting import plain_bytes

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


def attempt(
    work: Callable[[], Result], *, tokens: int | None = None, intact: bool = True
) -> Result:
    """Return what a function returns.

    Raises:
        OutOfMemory: it ran out of memory.
    """
    try:
        return work()
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        message = str(error)
    # Outside of the except block, because the error's traceback holds the tensors of the attempt.
    clear_device_cache(garbage_collection=True)
    raise OutOfMemory(message, tokens, intact=intact)


@dataclass
class Limits:
    """How many trials and tokens go through the base at once, as large as memory has allowed.

    Attributes:
        pack_size: trials that train together.
        micro_batch_tokens: tokens in a pass; None is any number.
    """

    pack_size: int
    micro_batch_tokens: int | None

    def lower(self, error: OutOfMemory, trials: int, longest: int, largest: int) -> str:
        """Halve the pack, or the micro-batch of a trial that trains alone; return a note on it.

        Args:
            error: what happened.
            trials: number of trials that trained together.
            longest: tokens of the longest example, which are the least that a pass needs.
            largest: tokens of the largest batch.

        Raises:
            RankwiseError: neither can be halved.
        """
        if trials > 1:
            self.pack_size = (trials + 1) // 2
            return (
                f"out of memory with {trials} trials at once; they go on "
                f"{self.pack_size} at a time, and so do later ones"
            )
        tokens = min(error.tokens or largest, self.micro_batch_tokens or largest)
        if tokens <= longest:
            raise too_little_memory(error, longest)
        self.micro_batch_tokens = max(longest, tokens // 2)
        return (
            f"out of memory with one trial and {tokens} tokens in a pass; its batches, and later "
            f"ones, go on in micro-batches of at most {self.micro_batch_tokens} tokens"
        )


def too_little_memory(error: OutOfMemory, longest: int) -> RankwiseError:
    """Return the error that says what one trial with one example needed, and what to change."""
    return RankwiseError(
        f"out of memory: one trial with one example of {longest} tokens does not fit "
        f"({_needed(str(error))}); lower --max-length or the largest rank, or add "
        "--gradient-checkpointing on or --quantization nf4; complete trials are kept"
    )


def _needed(message: str) -> str:
    """Return the bytes that were wanted, from PyTorch's message, and those that there are."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", message)
    more = f"{wanted[1]} more" if wanted else "more memory"
    if not torch.cuda.is_available():
        return f"it needed {more}"
    peak = torch.cuda.max_memory_allocated()
    _, total = torch.cuda.mem_get_info()
    return f"it needed {more} than {plain_bytes(peak)}, and the GPU has {plain_bytes(total)}"
