"""Memory of a training step, part by part, from a trace of the shortened model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rankwise.errors import RequestError
from rankwise.models.compat import first_sentence, quiet_libraries
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
    Record,
    Recorder,
    interpolate_records,
    peak_and_end,
    recording,
)
from rankwise.planning.repeated_blocks import Skeleton

if TYPE_CHECKING:
    from rankwise.planning.config import PlanConfig


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step. The first six add up to `peak_allocated`.

    Attributes:
        weights: the frozen base: parameters, buffers, quantisation scales.
        adapter: all trainable parameters: the adapter and modules trained in full.
        gradients: gradients of the trainable parameters.
        optimizer: the optimizer's states.
        activations: the rest of the peak: what forward and backward keep and allocate, scratch of
            the optimizer, the kernels and cuBLAS. If the peak comes before all gradients are
            there, they later take memory that activations release. That memory is counted once,
            as gradients.
        logits: logits, their copies and gradients, and the loss, at the highest moment.
        context: bytes of the driver, outside PyTorch's allocator.
        peak_allocated: the figure that ``torch.cuda.max_memory_allocated`` shows.
        peak_eval: the same figure for an evaluation between training steps.
        optimizer_paged: optimizer states in unified memory; no part of the peak.
        master_weights: fp32 copies of parameters trained in half precision. 0: PEFT keeps the
            adapter in fp32, and the step keeps no copies of modules trained in full.
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


@dataclass(frozen=True)
class ResidentStorage:
    """A storage that is there before the step.

    Attributes:
        size: bytes.
        trains: whether it belongs to a trainable parameter.
        repeats: how many storages of the whole model it stands for.
    """

    size: int
    trains: bool
    repeats: int


@dataclass(frozen=True)
class TracedStep:
    """A training step and an evaluation step of the shortened model.

    Attributes:
        training: the forward and backward pass.
        evaluation: a forward pass without gradients; None if it was not traced.
        resident: parameters and buffers.
        inputs: bytes of each tensor of the batch.
        parameters: the trainable parameters.
        kernels: names of the attention kernels.
        largest_dequantized: see `StepMemory`.
    """

    training: Record
    evaluation: Record | None
    resident: tuple[ResidentStorage, ...]
    inputs: tuple[int, ...]
    parameters: tuple[TrainedParameter, ...]
    kernels: frozenset[str]
    largest_dequantized: int

    def memory(self, optimizer: str, device: Device) -> StepMemory:
        """Add everything up for the whole model."""
        block = device.allocation_block
        states = optimizer_memory(optimizer, self.parameters, on_cpu=device.is_cpu, block=block)
        start = self._before(device)
        start[OPTIMIZER] = states.states
        peak, end = peak_and_end(start, self.training.sections(block))
        optimizer_step = end.copy()
        optimizer_step[OPTIMIZER] += states.scratch
        if optimizer_step.sum() > peak.sum():
            peak = optimizer_step
        evaluation = [] if self.evaluation is None else self.evaluation.sections(block)
        peak_eval, _ = peak_and_end(start, evaluation)

        at_peak = {part: int(size) for part, size in zip(PARTS, peak, strict=True)}
        parts = {part: int(size) for part, size in zip(PARTS, start, strict=True)}
        parts["gradients"] = int(end[GRADIENTS])
        rest = int(peak.sum()) - sum(parts[part] for part in PARTS[:ACTIVATIONS])
        parts["logits"] = min(rest, at_peak["logits"])
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

    def _before(self, device: Device) -> np.ndarray:
        """Return bytes by part before the step, without optimizer states."""
        block = device.allocation_block
        start = np.zeros(len(PARTS), dtype=np.int64)
        for storage in self.resident:
            part = ADAPTER if storage.trains else WEIGHTS
            start[part] += -(-storage.size // block) * block * storage.repeats
        inputs = sum(-(-size // block) * block for size in self.inputs)
        start[ACTIVATIONS] = device.workspace_bytes + inputs
        return start


def trace_step(
    skeleton: Skeleton,
    config: "PlanConfig",
    model: Any,
    kernels: DeviceKernels,
    *,
    evaluation: bool = True,
) -> TracedStep:
    """Trace a training step.

    The step is ``output = model(**batch); output.loss.backward(); optimizer.step()``, the second
    or a later one, so that optimizer states are there and gradients are not; ``output`` lives
    until its end. Gradient checkpointing is the non-reentrant kind. There is no autocast.

    Args:
        skeleton: the shortened model.
        config: batch, length, precision, quantisation and the rest.
        model: the model that `training_model` returned; it may be traced more than once.
        kernels: the device's.
        evaluation: whether to trace an evaluation step too.

    Raises:
        RequestError: the model cannot run such a step.
    """
    inputs = training_batch(skeleton, config)
    kernels.chosen.clear()
    with quiet_libraries(), kernels:
        training = _trace_training(model, skeleton, inputs, kernels.device)
        evaluated = None
        if evaluation:
            evaluated = _trace_evaluation(model, skeleton, inputs, kernels.device)
    parameters = [
        TrainedParameter(tuple(parameter.shape), parameter.itemsize, skeleton.repeats(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    return TracedStep(
        training=training,
        evaluation=evaluated,
        resident=_resident(model, skeleton),
        inputs=tuple(tensor.nbytes for tensor in inputs.values()),
        parameters=tuple(parameters),
        kernels=frozenset(kernels.chosen),
        largest_dequantized=largest_dequantized(model),
    )


def _trace_training(
    model: Any, skeleton: Skeleton, inputs: dict[str, torch.Tensor], device: Device
) -> Record:
    model.train()
    with recording(model, skeleton, inputs, _recorder(skeleton, device)) as step:
        with _refusing(skeleton):
            output = model(**inputs)
        if getattr(output, "loss", None) is None:
            raise RequestError(f"model {skeleton.meta.name!r} returns no loss; no plan for it")
        step.begin_backward()
        with _refusing(skeleton):
            output.loss.backward()
        step.end_backward()
        record = step.so_far()
    del output
    model.zero_grad(set_to_none=True)
    return record


def _trace_evaluation(
    model: Any, skeleton: Skeleton, inputs: dict[str, torch.Tensor], device: Device
) -> Record:
    model.eval()
    recorder = _recorder(skeleton, device)
    with torch.no_grad(), recording(model, skeleton, inputs, recorder) as step:
        with _refusing(skeleton):
            model(**inputs)
        return step.so_far()


def _recorder(skeleton: Skeleton, device: Device) -> Recorder:
    return Recorder({} if device.is_cpu else CUDA_SCRATCH, logit_classes(skeleton))


@contextmanager
def _refusing(skeleton: Skeleton) -> Iterator[None]:
    """Turn the errors of a model that does not take such inputs into refusals."""
    try:
        yield
    except RequestError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise RequestError(
            f"model {skeleton.meta.name!r} cannot run this step: {first_sentence(error)}"
        ) from error


def _resident(model: Any, skeleton: Skeleton) -> tuple[ResidentStorage, ...]:
    storages: dict[int, ResidentStorage] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        resident = ResidentStorage(storage.nbytes(), tensor.requires_grad, skeleton.repeats(name))
        storages.setdefault(id(storage), resident)
    return tuple(storages.values())


def interpolate_steps(points: Sequence[tuple[int, TracedStep]], at: int) -> TracedStep | None:
    """Return the step at a rank, batch size or length from the steps at a few.

    See `interpolate_records`. Everything else is linear, and follows from the first and last step.

    Returns:
        None if the traced steps do not have the same events.
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
        training=interpolate_records([(x, step.training) for x, step in points], at),
        evaluation=interpolate_records(evaluations, at) if evaluations else None,
        resident=tuple(
            replace(low, size=line(low.size, high.size))
            for low, high in zip(first.resident, last.resident, strict=True)
        ),
        inputs=tuple(map(line, first.inputs, last.inputs)),
        parameters=tuple(
            replace(low, shape=tuple(map(line, low.shape, high.shape)))
            for low, high in zip(first.parameters, last.parameters, strict=True)
        ),
        kernels=frozenset().union(*(step.kernels for step in steps)),
    )
