"""Memory at any rank, batch size and length; the most that fits a device; and what saves memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.memory.setup import training_model
from rankwise.planning.memory.step import StepMemory, TracedStep, interpolate_steps, trace_step
from rankwise.planning.repeated_blocks import Skeleton

if TYPE_CHECKING:
    from rankwise.planning.config import PlanConfig

LENGTH_STEP = 128
"""Lengths are tried in multiples of this: kernels pad to it."""
SEARCH_END = 1 << 24
"""Largest batch size, or number of length steps, that is tried."""
SAME_MODEL = {"optimizer", "batch_size", "seq_len"}
"""Fields of a request that change neither the model nor a trace of given sizes."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that a step is traced at."""

    rank: int
    batch_size: int
    seq_len: int


class Planner:
    """Memory of training steps of one model on one device, at any rank, batch size and length.

    Args:
        skeleton: the shortened model.
        config: the request.
        device: the device that is planned for.
        evaluation: whether evaluation steps are planned too; without them `StepMemory.peak_eval`
            holds only what is there before a step.

    Attributes:
        kernels: names of the attention kernels that the device chose.
    """

    def __init__(
        self, skeleton: Skeleton, config: "PlanConfig", device: Device, *, evaluation: bool = True
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.device = device
        self.evaluation = evaluation
        self.kernels: set[str] = set()
        self._device_kernels = DeviceKernels(device, config.attention)
        self._traced: dict[Sizes, TracedStep] = {}
        self._models: dict[int, Any] = {}  # the model of the last rank

    def memory(
        self, rank: int, batch_size: int | None = None, seq_len: int | None = None
    ) -> StepMemory:
        """Return the memory of a traced step; sizes that are not given are the request's."""
        return self._trace(self._sizes(rank, batch_size, seq_len)).memory(
            self.config.optimizer, self.device
        )

    def by_rank(self, ranks: Sequence[int]) -> dict[int, StepMemory]:
        """Return the memory by rank; steps between the lowest and the highest are interpolated."""
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
            # The request's own length is traced already, and serves as well as the third.
            lengths[2] = max(lengths[2], self.config.seq_len)
        return self._over(lengths, lambda length: self._sizes(rank, seq_len=length))

    def changed(self, **changes: object) -> "Planner":
        """Return a planner for the same skeleton and a changed request."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        planner = Planner(self.skeleton, config, self.device, evaluation=self.evaluation)
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
        if sizes not in self._traced:
            if sizes.rank not in self._models:
                self._models.clear()
                self._models[sizes.rank] = training_model(
                    self.skeleton, self.config, sizes.rank, self._device_kernels
                )
            self._traced[sizes] = trace_step(
                self.skeleton,
                replace(self.config, batch_size=sizes.batch_size, seq_len=sizes.seq_len),
                self._models[sizes.rank],
                self._device_kernels,
                evaluation=self.evaluation,
            )
        self.kernels |= self._traced[sizes].kernels
        return self._traced[sizes]


@dataclass(frozen=True)
class Limits:
    """The most that fits, each with the other settings as they are; None if not even 1 fits.

    Attributes:
        rank: the largest rank.
        highest_rank: the rank beyond which more adds nothing in any layer.
        at_rank: the rank that batch size and length are for.
        batch_size: the largest batch.
        seq_len: the longest sequence: a multiple of `LENGTH_STEP` or the model's own limit; None
            too if the length of the input is fixed.
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
        saves: bytes by which the need falls.
        fits: whether the smallest rank fits then.
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
        room: bytes that may be used.
        ranks: the request's ranks; batch size and length are for the largest of them that fits.
        highest_rank: the largest of the adapted layers' smaller sides.
        longest: the model's own limit of the length; 0 if the length is fixed, None if there is no
            limit.
    """
    over_ranks = planner.over_ranks(min(ranks), max(ranks))
    fitting = [rank for rank in ranks if over_ranks(rank).needed <= room]
    at_rank = max(fitting, default=min(ranks))
    over_batches = planner.over_batches(at_rank)
    seq_len = _find_length(planner, room, at_rank, longest)
    return Limits(
        rank=_largest(
            lambda rank: over_ranks(rank).needed <= room, highest_rank, max(fitting, default=0)
        ),
        highest_rank=highest_rank,
        at_rank=at_rank,
        batch_size=_largest(lambda size: over_batches(size).needed <= room, SEARCH_END),
        seq_len=seq_len,
    )


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

    Args:
        fits: whether a number fits.
        most: where to stop.
        known: a number that fits; 0 if none is known.
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
    for option, changes in _possible_savings(planner):
        try:
            needed = planner.changed(**changes).memory(rank).needed
        except RequestError:
            continue  # the model cannot do that
        if needed < now:
            savings.append(Saving(option, now - needed, needed <= room))
    return sorted(savings, key=lambda saving: -saving.saves)


def _possible_savings(planner: Planner) -> list[tuple[str, dict[str, object]]]:
    """Return options of the command that may save memory, each with the fields that it changes."""
    config = planner.config
    changes: list[tuple[str, dict[str, object]]] = []
    if not config.gradient_checkpointing:
        changes.append(("--gradient-checkpointing", {"gradient_checkpointing": True}))
    if config.quantization == "none":
        changes.append(("--quantization nf4", {"quantization": "nf4"}))
    if config.optimizer == "adamw":
        changes.append(("--optimizer adamw-8bit", {"optimizer": "adamw-8bit"}))
    if config.precision == "fp32":
        changes.append(("--precision bf16", {"precision": "bf16"}))
    if config.attention == "eager":
        changes.append(("--attention flash", {"attention": "flash"}))
    if config.seq_len > 1 and planner.skeleton.meta.task_type != "IMAGE_CLS":
        half = config.seq_len // 2
        changes.append((f"--seq-len {half}", {"seq_len": half}))
    if config.batch_size > 1:
        half = config.batch_size // 2
        changes.append((f"--batch-size {half}", {"batch_size": half}))
    return changes
