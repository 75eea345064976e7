"""How many trials of a sweep fit the machine at once, and the memory that each rank needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rankwise.errors import RequestError, first_sentence
from rankwise.formatting import plain_bytes
from rankwise.models.device import find_torch_device
from rankwise.models.out_of_memory import free_memory
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import APPLE, CPU, GENERIC, Device, find_device
from rankwise.planning.memory.setup import longest_input
from rankwise.planning.pack_fit import FusedRequest, PackPlanner
from rankwise.planning.planner import Planner
from rankwise.planning.prepare import PreparedRequest, prepare

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
        micro_batch_tokens: most tokens of a pass; None for whole batches.
        gradient_checkpointing: whether blocks keep their inputs alone.
        unknown: why the model cannot be planned; empty if it can.
    """

    at_once: int = 1
    needed: dict[int, int] = field(default_factory=dict)
    length: int = 0
    room: int = 0
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    unknown: str = ""

    @property
    def way(self) -> str:
        """How a batch goes through the base, in words; empty for whole, with everything kept."""
        passes = ""
        if self.micro_batch_tokens is not None:
            passes = f" in passes of at most {self.micro_batch_tokens} tokens"
        return passes + " with gradient checkpointing" * self.gradient_checkpointing

    def kept(self, chosen: Mapping[str, Any]) -> "Fit":
        """Return the fit with an earlier choice, unless there is now too little memory for it."""
        tokens, at_once = chosen["micro_batch_tokens"], chosen["pack_size"]
        is_on = chosen["gradient_checkpointing"] == "on"
        then = (is_on, -(tokens or math.inf))  # the larger, the less memory it takes
        now = (self.gradient_checkpointing, -(self.micro_batch_tokens or math.inf))
        if then < now:
            return self
        at_once = at_once if then > now else min(at_once, self.at_once)
        return replace(
            self, at_once=at_once, micro_batch_tokens=tokens, gradient_checkpointing=is_on
        )


@dataclass(frozen=True)
class _Machine:
    """Where trials train: the device, the bytes that may be used, and the most trials at once."""

    device: Device
    room: int
    most: int


def how_many_fit(
    config: PlanConfig,
    longest_text: Callable[[], int],
    budget: int | None = None,
    machine: tuple[Device, int] | None = None,
    fused: FusedRequest | None = None,
    micro_batch_tokens: int | None = None,
) -> Fit:
    """Return how many trials to train at once, and refuse ranks of which not even one fits.

    The reference engine trains one.

    Args:
        config: the training of one trial; longer texts are truncated to its length.
        longest_text: returns the tokens of the longest text; called only if texts of full length
            do not fit.
        budget: bytes available; default: the free bytes.
        machine: the device and the bytes free on it; default: this machine.
        fused: the request of the fused engine; None plans the reference engine.
        micro_batch_tokens: most tokens of a pass of the reference engine; None for whole batches.

    Returns:
        The fit. A model that cannot be planned gets one trial at once and the reason: loading it
        shows whether it trains.

    Raises:
        RequestError: a rank does not fit; the message names the ranks that do.
    """
    device, free = machine or this_machine()
    room = free if budget is None else min(budget, free)
    most = most_at_once(device, budget)
    place = _Machine(device, room, most)
    try:
        prepared = prepare(config)
        limit = longest_input(prepared.skeleton.meta.model)
        length = min(config.seq_len, limit or config.seq_len)
        prepared = replace(prepared, config=replace(prepared.config, seq_len=length))
        fit = None if fused is None else _fit_fused(fused, prepared, longest_text, place)
        fit = fit or _fit_reference(prepared, longest_text, place, micro_batch_tokens)
    except Exception as error:
        return Fit(unknown=first_sentence(error))
    too_large = [rank for rank, size in fit.needed.items() if size > room]
    if too_large:
        limit_text = f"{device.name} has {plain_bytes(free)} free"
        if room < free:
            limit_text = f"max_memory is {plain_bytes(room)}"
        raise _refusal(config, fit, too_large, limit_text)
    return fit


def most_at_once(device: Device, budget: int | None) -> int:
    """Return how many trials may train at once, however much memory there is."""
    if device is CPU and budget is None:
        return min(MOST_ON_CPU, torch.get_num_threads())
    return MOST_AT_ONCE


def _refusal(config: PlanConfig, fit: Fit, too_large: list[int], limit: str) -> RequestError:
    """Return the error that says which rank does not fit, and what does."""
    fitting = [rank for rank in fit.needed if rank not in too_large]
    changes = "a smaller max_length or batch_size"
    if not config.quantization.startswith("nf4"):
        changes += ", or quantization nf4"
    advice = f"no rank fits; try {changes}"
    if fitting:
        advice = f"ranks up to {max(fitting)} fit"
    size = plain_bytes(fit.needed[too_large[0]])
    return RequestError(
        f"rank {too_large[0]} needs about {size} for a batch of {config.batch_size} x "
        f"{fit.length} tokens{fit.way}, and {limit}; {advice}"
    )


def _fit_reference(
    prepared: PreparedRequest,
    longest_text: Callable[[], int],
    machine: _Machine,
    micro_batch_tokens: int | None,
) -> Fit:
    """Return the fit of PEFT's step, which trains one trial at a time."""
    config = prepared.config
    # Of whole batches and of parts of them; the lengths share a planner's kernels and traces.
    planners = {
        is_split: Planner(prepared.skeleton, config, machine.device, accumulates=is_split)
        for is_split in (False, True)
    }

    def needed(length: int) -> dict[int, int]:
        examples = config.batch_size
        if micro_batch_tokens is not None:
            examples = max(1, min(examples, micro_batch_tokens // length))
        planner = planners[examples < config.batch_size]
        planner = planner.changed(batch_size=examples, seq_len=length)
        steps = planner.by_rank(config.ranks)
        return {rank: memory.needed for rank, memory in steps.items()}

    length = config.seq_len
    needs = needed(length)
    if max(needs.values()) > machine.room:
        length = min(longest_text(), length)
        needs = needed(length)
    return Fit(
        needed=needs,
        length=length,
        room=machine.room,
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _fit_fused(
    fused: FusedRequest,
    prepared: PreparedRequest,
    longest_text: Callable[[], int],
    machine: _Machine,
) -> Fit | None:
    """Return the fit of the fused engine's step; None for a model that it does not take."""
    config, room = prepared.config, machine.room

    def packs(length: int) -> PackPlanner:
        request = replace(config, seq_len=length)
        cores = torch.get_num_threads()
        return PackPlanner(prepared.skeleton, request, machine.device, fused, cores)

    length = config.seq_len
    try:
        planner = packs(length)
        fastest = next(planner.limits())
        if planner.memory(max(config.ranks), fastest, machine.most).needed > room:
            length = min(longest_text(), length)
            planner = packs(length)
        fit = planner.fit(config.ranks, room, machine.most)
    except RequestError:
        return None
    limits = fit.limits
    return Fit(
        fit.at_once, fit.needed, length, room, limits.micro_batch_tokens, limits.checkpointing
    )


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
    if place.type == "mps":
        return Device("Apple GPU", free, APPLE, 0), free
    return CPU, free
