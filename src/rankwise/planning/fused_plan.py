"""What a sweep of the fused engine needs: the packs that fit, its work, and its hours."""

from dataclasses import dataclass, replace

import torch

from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.planning.flop import training_work
from rankwise.planning.machine_fit import most_at_once
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.setup import check_length
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.pack_fit import FusedRequest, PackPlanner
from rankwise.planning.prepare import PreparedRequest
from rankwise.tasks.base import Objective
from rankwise.tasks.losses import ClassificationObjective, CompletionObjective, RegressionObjective

TERA = 1e12


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The packs that fit a device, and what a sweep of every rank and seed takes.

    Attributes:
        at_once: trials of the largest rank that train at once; 0 if not even one fits, None without
            a device.
        pack_bytes: bytes that so many need, the base included; None without a device.
        micro_batch_tokens: most tokens of a pass; None for whole batches.
        gradient_checkpointing: whether blocks keep their inputs alone.
        trials: ranks times seeds.
        flop_per_token: useful work of training, see `rankwise.planning.flop`; mean over the ranks.
        tokens_per_second: at the given TFLOP/s; None without them.
        tokens: those that all trials train on; None without a number of examples.
        hours: time of training them; None without TFLOP/s or without examples.
    """

    at_once: int | None
    pack_bytes: int | None
    micro_batch_tokens: int | None
    gradient_checkpointing: bool
    trials: int
    flop_per_token: float
    tokens_per_second: float | None
    tokens: int | None
    hours: float | None


class FusedPlanner:
    """Plans steps and sweeps of the fused engine.

    Args:
        prepared: the request.
        device: the device to plan for.
        room: bytes on it; None if the request names no device and no memory.

    Raises:
        RequestError: the fused engine does not train such a model.
    """

    def __init__(self, prepared: PreparedRequest, device: Device, room: int | None) -> None:
        config = prepared.config
        if config.attention == "varlen" and (config.precision == "fp32" or device.capability < 80):
            raise RequestError(
                f"attention 'varlen' needs a GPU of the Ampere generation or later and precision "
                f"bf16 or fp16, not {config.precision} on {device.name}; take sdpa or blocks"
            )
        check_length(prepared.skeleton, config.seq_len)
        self.prepared = prepared
        self.config = config
        self.device = device
        self.room = room
        self.packs = self._packs(self.config)
        self.limits = next(self.packs.limits())
        self.at_once: int | None = None
        if room is not None:
            most = most_at_once(device, self.config.memory)
            fit = self.packs.fit(self.config.ranks, room, most)
            self.limits = fit.limits
            self.at_once = fit.at_once if max(fit.needed.values()) <= room else 0

    def by_rank(self) -> dict[int, StepMemory]:
        """Return the memory of a trial of each rank that trains alone."""
        return {rank: self.packs.memory(rank, self.limits) for rank in self.config.ranks}

    def peaks(self, quantization: str) -> dict[int, int]:
        """Return the bytes of the training peak over another base, by rank, with the same limits.

        Raises:
            RequestError: the model cannot run so.
        """
        packs = self.packs
        if quantization != self.config.quantization:
            config = replace(self.config, quantization=quantization)  # type: ignore[arg-type]
            packs = self._packs(config)
        return {rank: packs.memory(rank, self.limits).peak_allocated for rank in self.config.ranks}

    def sweep(self) -> SweepPlan:
        """Return the packs, the work and the time of a sweep."""
        config, pack_bytes = self.config, None
        if self.at_once is not None:
            trials = max(1, self.at_once)
            pack_bytes = self.packs.memory(max(config.ranks), self.limits, trials).needed
        per_token = self._flop_per_token()
        trials = len(config.ranks) * config.seeds
        tokens = hours = rate = None
        if config.train_examples is not None:
            tokens = trials * config.train_examples * config.epochs * config.seq_len
        if config.tflops is not None:
            rate = config.tflops * TERA / per_token
        if tokens is not None and rate is not None:
            hours = tokens / rate / 3600
        return SweepPlan(
            at_once=self.at_once,
            pack_bytes=pack_bytes,
            micro_batch_tokens=self.limits.micro_batch_tokens,
            gradient_checkpointing=self.limits.checkpointing,
            trials=trials,
            flop_per_token=per_token,
            tokens_per_second=rate,
            tokens=tokens,
            hours=hours,
        )

    def _packs(self, config: PlanConfig) -> PackPlanner:
        skeleton = self.prepared.skeleton
        request = FusedRequest(
            _objective(skeleton.meta.task_type, skeleton.meta.config.num_labels),
            "on" if config.gradient_checkpointing else "auto",
            config.micro_batch_tokens,
            "auto" if config.attention == "sdpa" else config.attention,  # type: ignore[arg-type]
            chooses=not self.device.is_cpu or config.memory is not None,
        )
        return PackPlanner(skeleton, config, self.device, request, torch.get_num_threads())

    def _flop_per_token(self) -> float:
        """Return the work of a token of a sequence of full length, all of it supervised.

        A classifier's head sees one token of a text, so it is no work of a token.
        """
        skeleton, length = self.prepared.skeleton, self.config.seq_len
        task = skeleton.meta.task_type
        work = training_work(skeleton.meta.model, task, skeleton.repeats)
        ranks = self.config.ranks
        mean = round(sum(map(self.packs.adapter_entries, ranks)) / len(ranks))
        return work.flop([length], length if task == "CAUSAL_LM" else 0, mean) / length


def _objective(task_type: str, num_labels: int) -> Objective:
    """Return the loss of a task.

    Raises:
        RequestError: the fused engine has no such task.
    """
    if task_type == "CAUSAL_LM":
        return CompletionObjective()
    if task_type == "SEQ_CLS" and num_labels == 1:
        return RegressionObjective(1.0)
    if task_type == "SEQ_CLS":
        return ClassificationObjective(tuple(map(str, range(num_labels))))
    raise RequestError(
        f"engine fused trains language models and classifiers of texts, not {task_type}; "
        "leave out --engine fused"
    )
