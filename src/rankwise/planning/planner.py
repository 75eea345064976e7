"""Memory at any rank, batch size and length; the most that fits a device; and what saves memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from rankwise.errors import RequestError
from rankwise.models.device import BF16_CAPABILITY, DTYPES
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.memory.setup import training_model
from rankwise.planning.memory.step import StepMemory, TracedStep, interpolate_steps, trace_step
from rankwise.planning.repeated_blocks import Skeleton

LENGTH_STEP = 128
"""Lengths are tried in multiples of this: kernels pad to it."""
SEARCH_END = 1 << 24
"""Largest batch size, or number of length steps, that is tried."""
SAME_MODEL = {"optimizer", "batch_size", "seq_len"}
"""Fields of a request that change neither the model nor a trace of given sizes."""
REPLACEMENTS = (
    ("quantization", "none", "nf4"),
    ("optimizer", "adamw", "adamw-8bit"),
    ("precision", "fp32", "bf16"),
    ("attention", "eager", "flash"),
)
"""Fields of a request, each with a value and one that needs less memory."""


class Sizes(NamedTuple):
    """The sizes of a traced step."""

    rank: int
    batch_size: int
    seq_len: int


class Planner:
    """Memory of training steps of one model on one device, at any rank, batch size and length.

    Args:
        skeleton: the shortened model.
        config: the request.
        device: the device to plan for.
        evaluation: whether to plan evaluation steps; without them `StepMemory.peak_eval` counts
            only the memory before a step.
        accumulates: whether a step's batch is a later part of a whole one, see `trace_step`.

    Attributes:
        kernels: names of the attention kernels that the device chose.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        config: PlanConfig,
        device: Device,
        *,
        evaluation: bool = True,
        accumulates: bool = False,
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.device = device
        self.evaluation = evaluation
        self.accumulates = accumulates
        self.kernels: set[str] = set()
        self._device_kernels = DeviceKernels(
            device, config.attention, _autocast_precision(config, device)
        )
        self._traced: dict[Sizes, TracedStep] = {}
        self._models: dict[int, Any] = {}  # the model of the last rank

    def memory(
        self, rank: int, batch_size: int | None = None, seq_len: int | None = None
    ) -> StepMemory:
        """Return the memory of a traced step; batch size and length default to the request's."""
        step = self._trace(self._sizes(rank, batch_size, seq_len))
        return step.memory(self.config.optimizer, self.device)

    def by_rank(self, ranks: Sequence[int]) -> dict[int, StepMemory]:
        """Return the memory by rank, interpolated between the lowest and the highest rank."""
        low, high = min(ranks), max(ranks)
        at = self.memory if low == high else self.over_ranks(low, high)
        return {rank: at(rank) for rank in ranks}

    def over_ranks(self, low: int, high: int) -> Callable[[int], StepMemory]:
        """Return a function from a rank to the memory, from steps traced at two ranks."""
        if low == high:  # a line needs two points; at rank 1 a step has other events
            low, high = (high // 2, high) if high > 3 else (2, 4)
        return self._over([low, high], self._sizes)

    def over_batches(self, rank: int) -> Callable[[int], StepMemory]:
        """Return a function from a batch size to the memory."""
        return self._over([2, 4], lambda size: self._sizes(rank, batch_size=size))

    def over_lengths(self, rank: int) -> Callable[[int], StepMemory]:
        """Return a function from a length, a multiple of `LENGTH_STEP`, to the memory."""
        lengths = [LENGTH_STEP, 2 * LENGTH_STEP, 3 * LENGTH_STEP]
        if self._sizes(rank) in self._traced and self.config.seq_len % LENGTH_STEP == 0:
            # The length of the request is traced already, and serves as well as the third.
            lengths[2] = max(lengths[2], self.config.seq_len)
        return self._over(lengths, lambda length: self._sizes(rank, seq_len=length))

    def changed(self, **changes: object) -> "Planner":
        """Return a planner for the same skeleton and a changed request."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        kinds = {"evaluation": self.evaluation, "accumulates": self.accumulates}
        planner = Planner(self.skeleton, config, self.device, **kinds)
        if changes.keys() <= SAME_MODEL:
            planner._device_kernels = self._device_kernels
            planner._traced = self._traced
            planner._models = self._models
        return planner

    def _sizes(self, rank: int, batch_size: int | None = None, seq_len: int | None = None) -> Sizes:
        return Sizes(rank, batch_size or self.config.batch_size, seq_len or self.config.seq_len)

    def _over(
        self, values: Sequence[int], sizes: Callable[[int], Sizes]
    ) -> Callable[[int], StepMemory]:
        """Return a function from a value to the memory, from steps traced at a few values."""
        points = [(value, self._trace(sizes(value))) for value in dict.fromkeys(values)]

        def at(value: int) -> StepMemory:
            # With a dimension of 1 some copies are views.
            step = None if value == 1 else interpolate_steps(points, value)
            step = step or self._trace(sizes(value))
            return step.memory(self.config.optimizer, self.device)

        return at

    def _trace(self, sizes: Sizes) -> TracedStep:
        kernels = self._device_kernels
        if sizes not in self._traced:
            config = replace(self.config, batch_size=sizes.batch_size, seq_len=sizes.seq_len)
            model = self._models.get(sizes.rank)
            if model is None:
                model = training_model(self.skeleton, config, sizes.rank, kernels)
                self._models.clear()
                self._models[sizes.rank] = model
            self._traced[sizes] = trace_step(
                self.skeleton, config, model, kernels, self.evaluation, self.accumulates
            )
        self.kernels |= self._traced[sizes].kernels
        return self._traced[sizes]


def _autocast_precision(config: PlanConfig, device: Device) -> torch.dtype | None:
    """Return the precision that autocast computes in: the base's, or the device's for fp32."""
    if not config.autocast:
        return None
    if config.precision != "fp32":
        return DTYPES[config.precision]
    has_bf16 = device.is_cpu or device.capability >= 10 * BF16_CAPABILITY[0]
    return torch.bfloat16 if has_bf16 else torch.float16


@dataclass(frozen=True)
class Limits:
    """The most that fits, each with the other settings as they are; None if not even 1 fits.

    Attributes:
        rank: the largest rank.
        highest_rank: the highest rank that any layer can use.
        at_rank: the rank of the limits of batch size and length.
        batch_size: the largest batch.
        seq_len: the longest sequence, a multiple of `LENGTH_STEP` or the limit of the model; None
            too for input of a fixed length.
    """

    rank: int | None
    highest_rank: int
    at_rank: int
    batch_size: int | None
    seq_len: int | None


@dataclass(frozen=True)
class Saving:
    """A change of the request and its effect.

    Attributes:
        change: the change, as options of the command.
        saves: bytes.
        fits: whether the smallest rank then fits.
    """

    change: str
    saves: int
    fits: bool


def find_limits(
    planner: Planner, room: int, ranks: Sequence[int], highest_rank: int, longest: int | None
) -> Limits:
    """Find the most that fits.

    Args:
        planner: planner of the request.
        room: bytes available.
        ranks: the requested ranks; batch size and length are for the largest of them that fits.
        highest_rank: the highest rank that any layer can use.
        longest: the limit of the model on the length; 0 for a fixed length, None for no limit.
    """
    over_ranks = planner.over_ranks(min(ranks), max(ranks))
    fitting = [rank for rank in ranks if over_ranks(rank).needed <= room]
    at_rank = max(fitting, default=min(ranks))
    over_batches = planner.over_batches(at_rank)
    seq_len = _find_length(planner, room, at_rank, longest)
    known = max(fitting, default=0)
    rank = _largest(lambda rank: over_ranks(rank).needed <= room, highest_rank, known)
    batch_size = _largest(lambda size: over_batches(size).needed <= room, SEARCH_END)
    return Limits(rank, highest_rank, at_rank, batch_size, seq_len)


def _find_length(planner: Planner, room: int, rank: int, longest: int | None) -> int | None:
    """Return the longest sequence that fits at a rank."""

    def fits(length: int) -> bool:
        return planner.memory(rank, seq_len=length).needed <= room

    if longest is not None and longest < 3 * LENGTH_STEP:
        return longest if longest and fits(longest) else None
    top = SEARCH_END if longest is None else longest // LENGTH_STEP
    over_lengths = planner.over_lengths(rank)
    steps = _largest(lambda count: over_lengths(count * LENGTH_STEP).needed <= room, top)
    length = (steps or 0) * LENGTH_STEP
    if length and planner.memory(rank, seq_len=length) != over_lengths(length):
        # The model treats long sequences otherwise: trace each.
        steps = _largest(lambda count: fits(count * LENGTH_STEP), top)
        length = (steps or 0) * LENGTH_STEP
    if longest is not None and steps == top and fits(longest):
        return longest
    return length or None


def _largest(fits: Callable[[int], bool], most: int, known: int = 0) -> int | None:
    """Return the largest number that fits, from 1 to ``most``; None if 1 does not.

    ``known`` is a number that fits; 0 if none is known.
    """
    if known >= most:
        return most
    if not known and not fits(1):
        return None
    low = max(known, 1)
    high = 2 * low
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def find_savings(planner: Planner, room: int, rank: int) -> list[Saving]:
    """Try what usually saves memory, one change at a time, and return what does, largest first."""
    now = planner.memory(rank).needed
    savings = []
    for name, value in _possible_savings(planner).items():
        try:
            needed = planner.changed(**{name: value}).memory(rank).needed
        except RequestError:
            continue  # the model cannot do that
        option = "--" + name.replace("_", "-") + ("" if value is True else f" {value}")
        if needed < now:
            savings.append(Saving(option, now - needed, needed <= room))
    return sorted(savings, key=lambda saving: -saving.saves)


def _possible_savings(planner: Planner) -> dict[str, object]:
    """Return values of fields of the request that may save memory."""
    config = planner.config
    changes: dict[str, object] = {}
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
    for name, value, better in REPLACEMENTS:
        if getattr(config, name) == value:
            changes[name] = better
    if config.seq_len > 1 and planner.skeleton.meta.task_type != "IMAGE_CLS":
        changes["seq_len"] = config.seq_len // 2
    if config.batch_size > 1:
        changes["batch_size"] = config.batch_size // 2
    return changes
