"""What fits a device: which ranks, how many sequences, how long, and what to change first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError
from rankwise.formatting import plain_bytes
from rankwise.models.compat import first_sentence
from rankwise.planning.memory.devices import CPU, GENERIC, Device, find_device
from rankwise.planning.memory.setup import training_model
from rankwise.planning.memory.step import StepMemory, TracedStep, step_between, trace_step
from rankwise.planning.params import Skeleton

if TYPE_CHECKING:
    from rankwise.planning.config import PlanConfig

LENGTH_STEP = 128
"""Lengths are tried in multiples of this: kernels pad to it."""
MOST = 1 << 24
UNTRACED = {"optimizer", "batch_size", "seq_len"}
"""Fields of a request that change no model and no trace of given sizes."""


class Planner:
    """Memory of training steps of one model on one device, at any rank, batch size and length.

    Args:
        skeleton: the cut model.
        config: the request.
        device: to plan for.
        evaluation: whether evaluation steps are planned too; without them `StepMemory.peak_eval` holds only what is
            there before a step.
    """

    def __init__(
        self, skeleton: Skeleton, config: "PlanConfig", device: Device, *, evaluation: bool = True
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.device = device
        self.evaluation = evaluation
        self.kernels: set[str] = set()
        self._traced: dict[tuple[int, int, int], TracedStep] = {}
        self._models: dict[int, Any] = {}  # the last one made, by its rank

    def memory(
        self, rank: int, batch_size: int | None = None, seq_len: int | None = None
    ) -> StepMemory:
        """Return a step's memory, traced."""
        return self._memory(self._trace(rank, batch_size, seq_len))

    def by_rank(self, ranks: Sequence[int]) -> dict[int, StepMemory]:
        """Return a step's memory by rank: the lowest and the highest rank traced, the others in between."""
        low, high = min(ranks), max(ranks)
        at = self.memory if low == high else self.over_ranks(low, high)
        return {rank: at(rank) for rank in ranks}

    def over_ranks(self, low: int, high: int) -> Callable[[int], StepMemory]:
        """Return a function that tells a step's memory at any rank."""
        if (
            low == high
        ):  # one point tells nothing of the others; and a trace at rank 1 is of another form
            low, high = (high // 2, high) if high > 3 else (2, 4)
        return self._over([low, high], lambda rank: (rank, None, None))

    def over_batches(self, rank: int) -> Callable[[int], StepMemory]:
        """Return a function that tells a step's memory at any batch size."""
        return self._over([2, 4], lambda size: (rank, size, None))

    def over_lengths(self, rank: int) -> Callable[[int], StepMemory]:
        """Return a function that tells a step's memory at any multiple of `LENGTH_STEP`."""
        lengths = [step * LENGTH_STEP for step in (1, 2, 3)]
        return self._over(lengths, lambda length: (rank, None, length))

    def changed(self, **changes: object) -> "Planner":
        """Return a planner for the same model and another request."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        other = Planner(self.skeleton, config, self.device, evaluation=self.evaluation)
        if changes.keys() <= UNTRACED:
            other._traced, other._models = self._traced, self._models
        return other

    def _over(
        self, values: list[int], place: Callable[[int], tuple[int, int | None, int | None]]
    ) -> Callable[[int], StepMemory]:
        points = [(value, self._trace(*place(value))) for value in dict.fromkeys(values)]

        def at(value: int) -> StepMemory:
            # With a dimension of 1 some copies are views.
            step = None if value == 1 else step_between(points, value)
            return self._memory(self._trace(*place(value)) if step is None else step)

        return at

    def _trace(
        self, rank: int, batch_size: int | None = None, seq_len: int | None = None
    ) -> TracedStep:
        key = (rank, batch_size or self.config.batch_size, seq_len or self.config.seq_len)
        if key not in self._traced:
            config = replace(self.config, batch_size=key[1], seq_len=key[2])
            if rank not in self._models:
                self._models.clear()
                self._models[rank] = training_model(
                    self.skeleton, self.config, rank, on_cpu=self.device.capability == 0
                )
            self._traced[key] = trace_step(
                self.skeleton, config, self._models[rank], self.device, evaluation=self.evaluation
            )
        self.kernels |= self._traced[key].kernels
        return self._traced[key]

    def _memory(self, step: TracedStep) -> StepMemory:
        return step.memory(self.config.optimizer, self.device)


@dataclass(frozen=True)
class Limits:
    """The most that fits, each with the other settings as they are; None where not even the least fits.

    Attributes:
        rank: the largest rank; above `highest_rank`, more adds nothing in any layer.
        at_rank: the rank that batch and length are for.
        batch_size: the largest batch.
        seq_len: the longest sequence, a multiple of `LENGTH_STEP` or the model's own limit; None as well where
            the length of the input is fixed.
    """

    rank: int | None
    highest_rank: int
    at_rank: int
    batch_size: int | None
    seq_len: int | None


@dataclass(frozen=True)
class Saving:
    """A change of the request and what it does.

    Attributes:
        change: as options of the command.
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
        planner: of the request.
        room: bytes that there are.
        ranks: those of the request; batch and length are for the largest of them that fits.
        highest_rank: the largest of the adapted layers' smaller sides.
        longest: the model's own limit of the length; 0 where the length is fixed.
    """
    over_ranks = planner.over_ranks(min(ranks), max(ranks))
    fitting = [rank for rank in ranks if over_ranks(rank).needed <= room]
    at_rank = max(fitting, default=min(ranks))
    over_batches = planner.over_batches(at_rank)
    length: int | None = None
    if longest is None or longest >= 3 * LENGTH_STEP:
        over_lengths = planner.over_lengths(at_rank)
        top = MOST if longest is None else longest // LENGTH_STEP
        steps = _largest(lambda count: over_lengths(count * LENGTH_STEP).needed <= room, top)
        length = None if steps is None else steps * LENGTH_STEP
        if length is not None and planner.memory(at_rank, seq_len=length) != over_lengths(length):
            # The model does otherwise with long sequences: trace each.
            steps = _largest(
                lambda count: planner.memory(at_rank, seq_len=count * LENGTH_STEP).needed <= room,
                top,
            )
            length = None if steps is None else steps * LENGTH_STEP
        if (
            longest is not None
            and steps == top
            and planner.memory(at_rank, seq_len=longest).needed <= room
        ):
            length = longest
    elif longest and planner.memory(at_rank, seq_len=longest).needed <= room:
        length = longest
    return Limits(
        rank=_largest(lambda rank: over_ranks(rank).needed <= room, highest_rank),
        highest_rank=highest_rank,
        at_rank=at_rank,
        batch_size=_largest(lambda size: over_batches(size).needed <= room, MOST),
        seq_len=length,
    )


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number that fits, if 1 does."""
    if not fits(1):
        return None
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def find_savings(planner: Planner, room: int, rank: int) -> list[Saving]:
    """Try what usually helps, one change at a time, and return what does, the largest saving first."""
    config = planner.config
    now = planner.memory(rank).needed
    tries: list[tuple[str, dict[str, object]]] = []
    if not config.gradient_checkpointing:
        tries.append(("--gradient-checkpointing", {"gradient_checkpointing": True}))
    if config.quantization == "none":
        tries.append(("--quantization nf4", {"quantization": "nf4"}))
    if config.optimizer == "adamw":
        tries.append(("--optimizer adamw-8bit", {"optimizer": "adamw-8bit"}))
    if config.precision == "fp32":
        tries.append(("--precision bf16", {"precision": "bf16"}))
    if config.attention == "eager":
        tries.append(("--attention flash", {"attention": "flash"}))
    if config.seq_len > 1 and planner.skeleton.meta.task_type != "IMAGE_CLS":
        tries.append((f"--seq-len {config.seq_len // 2}", {"seq_len": config.seq_len // 2}))
    if config.batch_size > 1:
        tries.append(
            (f"--batch-size {config.batch_size // 2}", {"batch_size": config.batch_size // 2})
        )
    savings = []
    for change, values in tries:
        try:
            needed = planner.changed(**values).memory(rank).needed
        except RequestError:
            continue  # the model cannot do that
        savings.append(Saving(change, now - needed, needed <= room))
    return sorted(
        (saving for saving in savings if saving.saves > 0), key=lambda saving: -saving.saves
    )


def chosen_device(config: "PlanConfig") -> tuple[Device, int | None]:
    """Return the device of a request, and how many bytes it has; None if the request names neither."""
    device = GENERIC if config.device is None else find_device(config.device)
    if config.memory is not None:
        return device, config.memory
    return device, _host_memory() if device is CPU else device.total_bytes


def this_machine() -> tuple[Device, int]:
    """Return the device that training runs on here, and the bytes that are free on it."""
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        free, _ = torch.cuda.mem_get_info()
        # The context is there already: `free` is without it.
        return Device(torch.cuda.get_device_name(), free, 10 * major + minor, 0), free
    return CPU, _host_memory()


def _host_memory() -> int:
    """Return the bytes of main memory that a program can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


MOST_AT_ONCE = 16
"""Trials in a pack: beyond, a pass has enough tokens to keep any device busy, and a killed sweep loses more."""
MOST_ON_CPU = 4
"""Trials in a pack on a CPU, and no more than its cores, unless the user says how much memory to use."""


@dataclass(frozen=True)
class Fit:
    """How trials fit a machine.

    Attributes:
        at_once: trials to train together, at most `MOST_AT_ONCE`; without a budget on a CPU at most `MOST_ON_CPU`.
        needed: bytes that a trial of each rank needs, the base included; empty where nothing could be planned.
        length: tokens of the sequences that this is for.
        room: bytes that may be used.
        unknown: why nothing could be planned; empty where it could.
    """

    at_once: int = 1
    needed: dict[int, int] = field(default_factory=dict)
    length: int = 0
    room: int = 0
    unknown: str = ""


def how_many_fit(
    config: "PlanConfig",
    longest_text: Callable[[], int],
    budget: int | None = None,
    machine: tuple[Device, int] | None = None,
) -> Fit:
    """Return how many trials to train at once and what each rank needs, and refuse ranks of which not even one fits.

    Args:
        config: the training of one trial, with the length that texts are cut at as its length.
        longest_text: tells the tokens of the longest text really there; asked only if texts of full length do not fit.
        budget: bytes that may be used; default: what is free.
        machine: the device and the bytes free on it; default: this machine's.

    Returns:
        One trial at once, no needs, and why, for a model that cannot be planned: loading tells whether it trains.

    Raises:
        RequestError: naming a rank, what it needs, what there is, and what fits.
    """
    import torch

    from rankwise.planning.memory.setup import DTYPES, longest_input
    from rankwise.planning.meta_model import load_meta_model
    from rankwise.planning.params import as_on_disk, make_skeleton, with_groups_named

    device, free = machine or this_machine()
    room = free if budget is None else min(budget, free)
    try:
        meta = load_meta_model(
            config.model,
            DTYPES[config.precision],
            task_type=config.task_type,
            num_labels=config.num_labels,
            trust_remote_code=config.trust_remote_code,
        )
        positions = longest_input(meta.model) or config.seq_len
        config = with_groups_named(as_on_disk(config, meta)[0], meta.model)
        skeleton = make_skeleton(meta, config)
        length = min(config.seq_len, positions)
        planner = Planner(skeleton, replace(config, seq_len=length), device)
        needs = planner.by_rank(config.ranks)
        most = (
            MOST_AT_ONCE
            if budget is not None or device is not CPU
            else min(MOST_ON_CPU, torch.get_num_threads())
        )
        if _at_once(needs, room) < most:
            length = min(longest_text(), length)
            needs = planner.changed(seq_len=length).by_rank(config.ranks)
    except Exception as error:
        return Fit(unknown=first_sentence(error))
    too_large = [rank for rank in config.ranks if needs[rank].needed > room]
    if too_large:
        fitting = [rank for rank in config.ranks if rank not in too_large]
        advice = (
            f"ranks up to {max(fitting)} fit"
            if fitting
            else "no rank fits; try a smaller batch_size or max_length"
        )
        there = (
            f"{device.name} has {plain_bytes(free)} free"
            if room == free
            else f"max_memory is {plain_bytes(room)}"
        )
        raise RequestError(
            f"rank {too_large[0]} needs about {plain_bytes(needs[too_large[0]].needed)} for a batch of "
            f"{config.batch_size} x {length} tokens, and {there}; {advice}"
        )
    at_once = min(most, _at_once(needs, room))
    return Fit(at_once, {rank: memory.needed for rank, memory in needs.items()}, length, room)


def _at_once(needs: Mapping[int, StepMemory], room: int) -> int:
    """Return how many trials of the largest need there is room for; the base is there once."""
    largest = max(needs.values(), key=lambda memory: memory.needed)
    return 1 + (room - largest.needed) // (largest.needed - largest.weights - largest.context)
