"""How many trials of a sweep fit the machine at once, and the memory that each rank needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from rankwise.errors import RequestError
from rankwise.formatting import plain_bytes
from rankwise.models.compat import first_sentence
from rankwise.models.device import find_torch_device
from rankwise.models.out_of_memory import free_memory
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import CPU, GENERIC, Device, find_device
from rankwise.planning.memory.setup import longest_input
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.planner import Planner
from rankwise.planning.prepare import prepare

MOST_AT_ONCE = 16
"""Trials in a pack: more keep no device busier, and a killed sweep loses more."""
MOST_ON_CPU = 4
"""Trials in a pack on a CPU, and no more than its cores, unless the user sets a memory budget."""


@dataclass(frozen=True)
class Fit:
    """The trials that fit a machine.

    Attributes:
        at_once: trials to train together.
        needed: bytes that a trial needs, the base included, by rank; empty if the model cannot be
            planned.
        length: tokens of a sequence.
        room: bytes available.
        unknown: why the model cannot be planned; empty if it can.
    """

    at_once: int = 1
    needed: dict[int, int] = field(default_factory=dict)
    length: int = 0
    room: int = 0
    unknown: str = ""


def how_many_fit(
    config: PlanConfig,
    longest_text: Callable[[], int],
    budget: int | None = None,
    machine: tuple[Device, int] | None = None,
) -> Fit:
    """Return how many trials to train at once, and refuse ranks of which not even one fits.

    Args:
        config: the training of one trial; longer texts are truncated to its length.
        longest_text: returns the tokens of the longest text; called only if texts of full length
            do not fit.
        budget: bytes available; default: the free bytes.
        machine: the device and the bytes free on it; default: this machine.

    Returns:
        The fit. A model that cannot be planned gets one trial at once and the reason: loading it
        shows whether it trains.

    Raises:
        RequestError: a rank does not fit; the message names the ranks that do.
    """
    device, free = machine or this_machine()
    room = free if budget is None else min(budget, free)
    most = MOST_AT_ONCE
    if device is CPU and budget is None:
        most = min(MOST_ON_CPU, torch.get_num_threads())
    try:
        prepared = prepare(config)
        length = min(config.seq_len, longest_input(prepared.skeleton.meta.model) or config.seq_len)
        request = replace(prepared.config, seq_len=length)
        planner = Planner(prepared.skeleton, request, device)
        needs = planner.by_rank(config.ranks)
        if _at_once(needs, room) < most:
            length = min(longest_text(), length)
            needs = planner.changed(seq_len=length).by_rank(config.ranks)
    except Exception as error:
        return Fit(unknown=first_sentence(error))
    needed = {rank: memory.needed for rank, memory in needs.items()}
    too_large = [rank for rank, size in needed.items() if size > room]
    if too_large:
        fitting = [rank for rank in needed if rank not in too_large]
        advice = "no rank fits; try a smaller batch_size or max_length"
        if fitting:
            advice = f"ranks up to {max(fitting)} fit"
        limit = f"{device.name} has {plain_bytes(free)} free"
        if room < free:
            limit = f"max_memory is {plain_bytes(room)}"
        raise RequestError(
            f"rank {too_large[0]} needs about {plain_bytes(needed[too_large[0]])} for a batch of "
            f"{config.batch_size} x {length} tokens, and {limit}; {advice}"
        )
    return Fit(min(most, _at_once(needs, room)), needed, length, room)


def _at_once(needs: Mapping[int, StepMemory], room: int) -> int:
    """Return how many trials of the largest need there is room for; they share one base."""
    largest = max(needs.values(), key=lambda memory: memory.needed)
    return 1 + (room - largest.needed) // (largest.needed - largest.weights - largest.context)


def chosen_device(config: PlanConfig) -> tuple[Device, int | None]:
    """Return the device of a request and its bytes; None bytes if the request names neither."""
    device = GENERIC if config.device is None else find_device(config.device)
    if config.memory is not None:
        return device, config.memory
    return device, free_memory(torch.device("cpu")) if device is CPU else device.total_bytes


def this_machine(name: str = "auto") -> tuple[Device, int]:
    """Return the device that training runs on here, and the bytes that are free on it.

    Args:
        name: see `rankwise.models.device.find_torch_device`.
    """
    place = find_torch_device(name)
    free = free_memory(place)
    if place.type == "cuda":
        major, minor = torch.cuda.get_device_capability(place)
        # The context is there already: `free` is without it.
        return Device(torch.cuda.get_device_name(place), free, 10 * major + minor, 0), free
    return CPU, free
