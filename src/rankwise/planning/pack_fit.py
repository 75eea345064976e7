"""Packs of the fused engine that fit a device: trials at once, micro-batches, checkpointing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankwise.engine.config import AttentionName, CheckpointingName
from rankwise.engine.fused.checkpointing import checkpointed_blocks
from rankwise.engine.fused.loop import max_pass_tokens
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.fused_step import FusedStep, PackShape, device_of
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.repeated_blocks import Skeleton
from rankwise.tasks.base import Objective

FEWEST_TOKENS = 1024
"""Micro-batches are not cut below so many tokens before checkpointing is tried."""


@dataclass(frozen=True)
class PassLimits:
    """How a batch goes through the base.

    Attributes:
        micro_batch_tokens: most tokens of a pass; None for a whole batch.
        checkpointing: whether blocks keep their inputs alone.
    """

    micro_batch_tokens: int | None
    checkpointing: bool


@dataclass(frozen=True)
class FusedRequest:
    """What a sweep asks of the fused engine; `rankwise.engine.config` has the settings.

    Attributes:
        objective: the loss.
        gradient_checkpointing: auto, on or off.
        micro_batch_tokens: most tokens of a pass; None is auto.
        attention: the engine's kernel.
        chooses: whether the plan chooses for auto; if not, it is off and whole batches.
    """

    objective: Objective
    gradient_checkpointing: CheckpointingName = "auto"
    micro_batch_tokens: int | None = None
    attention: AttentionName = "auto"
    chooses: bool = True


@dataclass(frozen=True)
class PackFit:
    """The pack that fits.

    Attributes:
        at_once: its trials.
        limits: how a batch goes through the base.
        needed: bytes that a trial alone needs, the base included, by rank.
    """

    at_once: int
    limits: PassLimits
    needed: dict[int, int]


class PackPlanner:
    """Memory of packs of one model on one device, for any number of trials.

    Args:
        skeleton: the shortened model.
        config: the request.
        device: the device to plan for.
        request: what is asked of the fused engine.
        cores: threads that a CPU has for the trials of a pack.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        config: PlanConfig,
        device: Device,
        request: FusedRequest,
        cores: int = 1,
    ) -> None:
        self.config = config
        self.device = device
        self.request = request
        self.cores = cores
        self._has_blocks = bool(checkpointed_blocks(skeleton.meta.model))
        kernels = DeviceKernels(device, "sdpa")
        self._step = FusedStep(skeleton, config, kernels, request.objective, request.attention)

    def adapter_entries(self, rank: int) -> int:
        """Return the parameters of an adapter of a rank, without a trained head."""
        return self._step.adapter_entries(rank)

    def memory(self, rank: int, limits: PassLimits, trials: int = 1) -> StepMemory:
        """Return the memory of a pack of trials of one rank.

        Raises:
            RequestError: the fused engine cannot run such a step.
        """
        return self._step.memory(self._shape(rank, limits, trials))

    def fit(self, ranks: Sequence[int], room: int, most: int) -> PackFit:
        """Return the largest pack with the fastest limits at which the largest rank fits.

        If it fits at none, one trial needs more than there is, with the last limits.

        Raises:
            RequestError: the fused engine cannot run such a step.
        """
        highest = max(ranks)
        for limits in self.limits():
            if self.memory(highest, limits).needed <= room:
                trials = self._most_trials(highest, limits, room, most)
                return PackFit(trials, limits, self._needed(ranks, limits))
        return PackFit(1, limits, self._needed(ranks, limits))

    def limits(self) -> Iterator[PassLimits]:
        """Yield the limits to try, fastest first; what the request sets is not changed.

        Recomputing blocks takes a third more time, and smaller passes take hardly more.
        """
        request = self.request
        sizes: list[int | None] = [request.micro_batch_tokens]
        recomputed = [request.gradient_checkpointing == "on"]
        if request.chooses:
            batch = self.config.batch_size * self.config.seq_len
            while request.micro_batch_tokens is None and batch // 2 >= self.config.seq_len:
                batch //= 2
                sizes.append(batch)
            if request.gradient_checkpointing == "auto" and self._has_blocks:
                recomputed.append(True)
        for is_on in recomputed:
            for size in sizes:
                is_first = size == sizes[0]  # what was asked for, however small
                if is_on == recomputed[-1] or is_first or (size or 0) >= FEWEST_TOKENS:
                    yield PassLimits(size, is_on)

    def _needed(self, ranks: Sequence[int], limits: PassLimits) -> dict[int, int]:
        """Return the bytes that a trial alone needs, by rank: a line between lowest and highest."""
        low, high = min(ranks), max(ranks)
        first, last = (self.memory(rank, limits).needed for rank in (low, high))
        slope = (last - first) / max(1, high - low)
        return {rank: first + round(slope * (rank - low)) for rank in ranks}

    def _most_trials(self, rank: int, limits: PassLimits, room: int, most: int) -> int:
        """Return how many trials of a rank fit, at least 1, if one does."""
        low, high = 1, most + 1
        if self.memory(rank, limits, most).needed <= room:
            return most
        while high - low > 1:
            middle = (low + high) // 2
            if self.memory(rank, limits, middle).needed <= room:
                low = middle
            else:
                high = middle
        return low

    def _shape(self, rank: int, limits: PassLimits, trials: int) -> PackShape:
        """Return the pack and its largest pass, see `rankwise.engine.fused.loop`."""
        config = self.config
        shared = 0 if config.quantization == "int8" else max_pass_tokens(device_of(self.device))
        examples = config.batch_size
        if limits.micro_batch_tokens is not None:
            shared = min(shared, limits.micro_batch_tokens)
            fitting = limits.micro_batch_tokens // config.seq_len
            examples = max(1, min(examples, fitting))
        threads = min(trials, self.cores) if self.device.is_cpu else 1
        in_thread = -(-trials // threads)
        in_pass = max(1, min(in_thread, shared // (examples * config.seq_len)))
        checkpointing = limits.checkpointing
        return PackShape(rank, trials, in_pass, examples, config.seq_len, checkpointing, threads)
