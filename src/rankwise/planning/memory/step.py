"""Memory of a training step, part by part, from a trace of the shortened model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from rankwise.errors import RequestError, reading
from rankwise.models.compat import quiet_libraries
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory import trace
from rankwise.planning.memory.autocast import Casts, switch_off_inside
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import CUDA_SCRATCH, DeviceKernels
from rankwise.planning.memory.optimizers import TrainedParameter, optimizer_memory
from rankwise.planning.memory.quantized import largest_dequantized
from rankwise.planning.memory.setup import logit_classes, training_batch
from rankwise.planning.memory.trace import (
    ACTIVATIONS,
    ADAPTER,
    GRADIENTS,
    OPTIMIZER,
    PARTS,
    WEIGHTS,
)
from rankwise.planning.repeated_blocks import Skeleton


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step. The first six add up to `peak_allocated`.

    Attributes:
        weights: the frozen base: parameters, buffers, quantisation scales.
        adapter: all trainable parameters: the adapter and modules trained in full.
        gradients: gradients of the trainable parameters.
        optimizer: states of the optimizer.
        activations: the rest of the peak: tensors of forward and backward, and scratch of the
            optimizer, the kernels and cuBLAS.
        logits: logits, their copies and gradients, and the loss, at the highest moment. Memory that
            gradients take over after that moment, from activations and logits, counts as gradients;
            both look smaller in the same proportion.
        context: bytes of the driver, outside PyTorch's allocator.
        peak_allocated: the figure that ``torch.cuda.max_memory_allocated`` shows.
        peak_eval: the same figure for an evaluation between training steps.
        optimizer_paged: optimizer states in unified memory; no part of the peak.
        master_weights: fp32 copies of parameters trained in half precision; always 0, because
            PEFT keeps the adapter in fp32.
        largest_dequantized: the largest weight that is dequantised for a moment; part of
            `activations` if that is the highest moment.
        at_peak: bytes by part at the highest moment.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    context: int
    peak_allocated: int
    peak_eval: int
    optimizer_paged: int
    master_weights: int
    largest_dequantized: int
    at_peak: dict[str, int]

    @property
    def needed(self) -> int:
        """Bytes that a device must have free: the higher of both peaks, and the context."""
        return max(self.peak_allocated, self.peak_eval) + self.context

    def as_dict(self) -> dict[str, int]:
        """Return the figures by name, without `at_peak`."""
        names = [item.name for item in fields(self) if item.name != "at_peak"]
        return {name: getattr(self, name) for name in names}


class ResidentStorage(NamedTuple):
    """A storage that is there before the step; the whole model has ``repeats`` of it."""

    size: int  # bytes
    trains: bool  # belongs to a trainable parameter
    repeats: int


@dataclass(frozen=True)
class TracedStep:
    """A training step and an evaluation step of the shortened model."""

    training: trace.Record  # the forward and backward pass
    evaluation: trace.Record | None  # a forward pass without gradients
    resident: tuple[ResidentStorage, ...]  # parameters and buffers
    inputs: tuple[int, ...]  # bytes of each tensor of the batch
    parameters: tuple[TrainedParameter, ...]  # the trainable ones
    accumulates: bool  # whether gradients of a part before are there already
    kernels: frozenset[str]  # names of the attention kernels
    largest_dequantized: int  # as in `StepMemory`

    def memory(self, optimizer: str, device: Device) -> StepMemory:
        """Add everything up for the whole model."""
        block = device.allocation_block
        states = optimizer_memory(optimizer, self.parameters, on_cpu=device.is_cpu, block=block)
        start = self._before_step(device)
        start[OPTIMIZER] = states.states
        before = start.copy()
        if self.accumulates:
            sizes = (device.allocated(each.size) * each.repeats for each in self.parameters)
            before[GRADIENTS] = sum(sizes)
        peak, end = trace.peak_and_end(before, self.training.sections(block))
        if end.sum() + states.scratch > peak.sum():  # the optimizer's step
            peak = end.copy()
            peak[OPTIMIZER] += states.scratch
        evaluation = [] if self.evaluation is None else self.evaluation.sections(block)
        peak_eval, _ = trace.peak_and_end(start, evaluation)

        at_peak = {part: int(size) for part, size in zip(PARTS, peak, strict=True)}
        parts = {part: int(size) for part, size in zip(PARTS, start, strict=True)}
        parts["gradients"] = int(end[GRADIENTS])
        rest = int(peak.sum()) - sum(parts[part] for part in PARTS[:ACTIVATIONS])
        parts["logits"] = at_peak["logits"]
        kept = at_peak["activations"] + at_peak["logits"]
        if rest < kept:  # gradients take the difference over, from both
            parts["logits"] = rest * at_peak["logits"] // kept
        parts["activations"] = rest - parts["logits"]
        return StepMemory(
            **parts,
            context=device.context_bytes,
            peak_allocated=int(peak.sum()),
            peak_eval=int(peak_eval.sum()),
            optimizer_paged=states.paged,
            master_weights=0,
            largest_dequantized=self.largest_dequantized,
            at_peak=at_peak,
        )

    def has_events_of(self, other: "TracedStep") -> bool:
        """Return whether both have the same events, so that only sizes differ."""
        records = [(self.training, other.training)]
        if self.evaluation is not None and other.evaluation is not None:
            records.append((self.evaluation, other.evaluation))
        have_same_events = all(record.has_events_of(same) for record, same in records)
        return have_same_events and len(self.resident) == len(other.resident)

    def _before_step(self, device: Device) -> np.ndarray:
        """Return bytes by part before the step, without optimizer states."""
        start = np.zeros(len(PARTS), dtype=np.int64)
        for storage in self.resident:
            part = ADAPTER if storage.trains else WEIGHTS
            start[part] += device.allocated(storage.size) * storage.repeats
        start[ACTIVATIONS] = device.workspace_bytes + sum(map(device.allocated, self.inputs))
        return start


def trace_step(
    skeleton: Skeleton,
    config: PlanConfig,
    model: Any,
    kernels: DeviceKernels,
    evaluation: bool,
    accumulates: bool = False,
) -> TracedStep:
    """Trace a training step.

    The step is ``output = model(**batch); output.loss.backward(); optimizer.step()``, the second
    or a later one, so that optimizer states are there; ``output`` lives until its end. With
    autocast the first of these runs under it. Gradient checkpointing is not reentrant.

    Args:
        skeleton: the shortened model.
        config: the request.
        model: the model that `training_model` returned; it may be traced more than once.
        kernels: the kernels of the device.
        evaluation: whether to trace an evaluation step too.
        accumulates: whether the batch is a later part of a whole one, to whose gradients its own
            are added; if not, there are none before.

    Raises:
        RequestError: the model cannot run such a step.
    """
    inputs = training_batch(skeleton, config)
    kernels.chosen.clear()
    evaluated = None
    if accumulates:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with quiet_libraries(), _autocast_hooks(model, kernels):
        training = _record(model, skeleton, inputs, kernels, train=True)
        if evaluation:
            evaluated = _record(model, skeleton, inputs, kernels, train=False)
    parameters = [
        TrainedParameter(tuple(tensor.shape), tensor.itemsize, skeleton.repeats(name))
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    ]
    return TracedStep(
        training=training,
        evaluation=evaluated,
        resident=resident_storages(model, skeleton),
        inputs=tuple(tensor.nbytes for tensor in inputs.values()),
        parameters=tuple(parameters),
        accumulates=accumulates,
        kernels=frozenset(kernels.chosen),
        largest_dequantized=largest_dequantized(model),
    )


def _record(
    model: Any,
    skeleton: Skeleton,
    inputs: dict[str, torch.Tensor],
    kernels: DeviceKernels,
    *,
    train: bool,
) -> trace.Record:
    """Record a forward pass and, in training, the backward pass."""
    model.train(train)
    scratch = {} if kernels.device.is_cpu else CUDA_SCRATCH
    recorder = trace.Recorder(scratch, logit_classes(skeleton))
    for parameter in model.parameters():
        if parameter.grad is not None:
            recorder.ignore(parameter.grad)
    recording = trace.recording(model, skeleton, inputs, recorder)
    with torch.set_grad_enabled(train), recording:
        with reading(no_plan(skeleton.meta.name)), kernels:
            output = model(**inputs)
            if kernels.casts is not None:
                _release_casts(kernels.casts, model, skeleton, recorder)
        if train:
            if getattr(output, "loss", None) is None:
                raise RequestError(f"model {skeleton.meta.name!r} returns no loss; no plan for it")
            recorder.begin_backward()
            with reading(no_plan(skeleton.meta.name)):
                output.loss.backward()
            for parameter in model.parameters():
                number = None if parameter.grad is None else recorder.number(parameter.grad)
                if number is not None:
                    recorder.parts[number] = GRADIENTS
        record = recorder.record()
    model.zero_grad(set_to_none=True)
    return record


@contextmanager
def _autocast_hooks(model: Any, kernels: DeviceKernels) -> Iterator[None]:
    """Let the model's modules switch autocast off where they do on a real device."""
    hooks = []
    if kernels.casts is not None:
        hooks = switch_off_inside(model, kernels.casts.device_type)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _release_casts(casts: Casts, model: Any, skeleton: Skeleton, recorder: trace.Recorder) -> None:
    """Release autocast's casts of parameters, each as often as the whole model has it."""
    for name, parameter in model.named_parameters():
        if id(parameter) in casts.kept:
            recorder.begin_section(skeleton.repeats(name))
            del casts.kept[id(parameter)]


def no_plan(name: str) -> str:
    """Return what is said of a model that does not take such inputs, before the reason."""
    return (
        f"model {name!r} cannot run this step on PyTorch's meta device, and has no plan (train a "
        "few steps at one rank to measure its memory)"
    )


def resident_storages(model: Any, skeleton: Skeleton) -> tuple[ResidentStorage, ...]:
    """Return the storages of parameters and buffers, each once."""
    storages: dict[int, ResidentStorage] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        resident = ResidentStorage(storage.nbytes(), tensor.requires_grad, skeleton.repeats(name))
        storages.setdefault(id(storage), resident)
    return tuple(storages.values())


def interpolate_steps(points: Sequence[tuple[int, TracedStep]], at: int) -> TracedStep | None:
    """Return the step at a rank, batch size or length; None if the points' events differ.

    `trace.interpolate_records` has the formula. Sizes outside the records are linear.
    """
    steps = [step for _, step in points]
    first, last = steps[0], steps[-1]
    if not all(step.has_events_of(first) for step in steps[1:]):
        return None

    def line(low: int, high: int) -> int:
        if len(points) == 1:
            return low
        return round(low + (high - low) * (at - points[0][0]) / (points[-1][0] - points[0][0]))

    evaluations = [(x, step.evaluation) for x, step in points if step.evaluation is not None]
    return replace(
        first,
        training=trace.interpolate_records([(x, step.training) for x, step in points], at),
        evaluation=trace.interpolate_records(evaluations, at) if evaluations else None,
        resident=tuple(
            low._replace(size=line(low.size, high.size))
            for low, high in zip(first.resident, last.resident, strict=True)
        ),
        inputs=tuple(map(line, first.inputs, last.inputs)),
        parameters=tuple(
            replace(low, shape=tuple(map(line, low.shape, high.shape)))
            for low, high in zip(first.parameters, last.parameters, strict=True)
        ),
        kernels=first.kernels.union(*(step.kernels for step in steps)),
    )
