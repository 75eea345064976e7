"""A training step's memory, part by part: traced on the cut model, and multiplied to its whole depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rankwise.errors import RequestError
from rankwise.models.compat import first_sentence, quiet_libraries
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import CUDA_SCRATCH, DeviceKernels
from rankwise.planning.memory.optimizers import optimizer_memory
from rankwise.planning.memory.quantized import largest_dequantized
from rankwise.planning.memory.setup import logit_classes, training_batch
from rankwise.planning.memory.trace import (
    ACTIVATIONS,
    BLOCK,
    GRADIENTS,
    PARTS,
    Record,
    between,
    highest,
    recording,
)
from rankwise.planning.params import Skeleton

if TYPE_CHECKING:
    from rankwise.planning.config import PlanConfig


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step. The first six add up to `peak_allocated`.

    Attributes:
        weights: the frozen base: parameters, buffers, quantisation scales.
        adapter: trainable parameters: adapter and modules trained in full.
        gradients: of all of those.
        optimizer: its states.
        activations: the rest of the peak: what forward and backward keep and allocate, the optimizer's and the
            kernels' scratch, cuBLAS. Where the peak comes before all gradients are there, they later take memory
            that these release, so that much is counted once, as gradients.
        logits: at the highest moment: logits, their copies and gradients, and the loss.
        context: the driver's, outside PyTorch's allocator.
        peak_allocated: what ``torch.cuda.max_memory_allocated`` shows.
        peak_eval: the same while evaluating between training steps.
        optimizer_paged: states in unified memory; no part of the peak.
        master_weights: fp32 copies of parameters trained in half precision. 0: PEFT keeps the adapter in fp32, and
            the plain training step that is planned keeps no copies of modules trained in full.
        largest_dequantized: the largest weight that is dequantised for a moment; within `activations` when that is
            the highest moment.
        at_peak: what is there at the highest moment, by part.
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
        """What a device must have free: the higher of both peaks, and the context."""
        return max(self.peak_allocated, self.peak_eval) + self.context

    def as_dict(self) -> dict[str, int]:
        """Return the figures by name, without `at_peak`."""
        return {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "at_peak"
        }


@dataclass(frozen=True)
class TracedStep:
    """A training step and an evaluation step of the cut model.

    Attributes:
        training: forward and backward pass.
        evaluation: a forward pass without gradients; None where it was not asked for.
        resident: what is there before, as (bytes, whether it trains, how many of it the whole model has).
        inputs: bytes of each tensor of the batch.
        shapes: of the trainable parameters, as (shape, bytes of a number, how many of it the whole model has).
        kernels: names of the attention kernels.
        largest_dequantized: see `StepMemory`.
    """

    training: Record
    evaluation: Record | None
    resident: tuple[tuple[int, bool, int], ...]
    inputs: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], int, int], ...]
    kernels: frozenset[str]
    largest_dequantized: int

    def memory(self, optimizer: str, device: Device) -> StepMemory:
        """Add everything up for the whole model."""
        on_cpu = device.capability == 0
        block = 1 if on_cpu else BLOCK

        def rounded(size: int) -> int:
            return -(-size // block) * block

        kept = optimizer_memory(optimizer, self.shapes, on_cpu=on_cpu, block=block)
        start = np.zeros(len(PARTS), dtype=np.int64)
        for size, trains, times in self.resident:
            start[PARTS.index("adapter" if trains else "weights")] += rounded(size) * times
        start[PARTS.index("optimizer")] = kept.states
        start[ACTIVATIONS] = device.workspace_bytes + sum(map(rounded, self.inputs))
        peak, after = highest(start, self.training.pieces(block))
        stepping = after.copy()
        stepping[PARTS.index("optimizer")] += kept.scratch
        peak = stepping if stepping.sum() > peak.sum() else peak
        peak_eval, _ = highest(
            start, [] if self.evaluation is None else self.evaluation.pieces(block)
        )
        at_peak = dict(zip(PARTS, (int(value) for value in peak), strict=True))
        parts = dict(zip(PARTS, (int(value) for value in start), strict=True))
        parts["gradients"] = int(after[GRADIENTS])
        rest = int(peak.sum()) - sum(parts[part] for part in PARTS[:4])
        parts["logits"] = min(rest, at_peak["logits"])
        parts["activations"] = rest - parts["logits"]
        return StepMemory(
            **parts,
            context=device.context_bytes,
            peak_allocated=int(peak.sum()),
            peak_eval=int(peak_eval.sum()),
            optimizer_paged=kept.paged,
            master_weights=0,
            largest_dequantized=self.largest_dequantized,
            at_peak=at_peak,
        )


def trace_step(
    skeleton: Skeleton, config: "PlanConfig", model: Any, device: Device, *, evaluation: bool = True
) -> TracedStep:
    """Trace a step.

    The training step is ``output = model(**batch); output.loss.backward(); optimizer.step()``, the second or a later
    one, so that optimizer states are there and gradients are not; ``output`` lives until its end. Gradient
    checkpointing is the non-reentrant kind. There is no autocast.

    Args:
        skeleton: the cut model.
        config: batch, length, precision, quantisation and the rest.
        model: from `training_model`; may be traced more than once.
        device: decides kernels.
        evaluation: whether to trace an evaluation step too.

    Raises:
        RequestError: the model cannot run such a step.
    """
    on_cpu = device.capability == 0
    model.train()
    inputs = training_batch(skeleton, config)
    kernels = DeviceKernels(device, config.attention)
    scratch = {} if on_cpu else CUDA_SCRATCH
    try:
        with quiet_libraries(), kernels:
            with recording(model, skeleton, inputs, scratch, logit_classes(skeleton)) as (
                recorder,
                markers,
            ):
                output = model(**inputs)
                markers.begin_backward()
                output.loss.backward()
                for parameter in model.parameters():
                    number = None if parameter.grad is None else recorder.number(parameter.grad)
                    if number is not None:
                        recorder.parts[number] = GRADIENTS
                training = markers.record()
            del output
            model.zero_grad(set_to_none=True)
            evaluated = _trace_evaluation(model, skeleton, inputs, scratch) if evaluation else None
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        NotImplementedError,
    ) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"model {skeleton.meta.name!r} cannot run this step: {first_sentence(error)}"
        ) from error
    return TracedStep(
        training=training,
        evaluation=evaluated,
        resident=_resident(model, skeleton),
        inputs=tuple(tensor.nbytes for tensor in inputs.values()),
        shapes=tuple(
            (tuple(parameter.shape), parameter.itemsize, skeleton.repeats(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ),
        kernels=frozenset(kernels.kernels),
        largest_dequantized=largest_dequantized(model),
    )


def _trace_evaluation(
    model: Any,
    skeleton: Skeleton,
    inputs: dict[str, torch.Tensor],
    scratch: dict[Any, Callable[..., int]],
) -> Record:
    model.eval()
    with (
        torch.no_grad(),
        recording(model, skeleton, inputs, scratch, logit_classes(skeleton)) as (_, markers),
    ):
        model(**inputs)
        return markers.record()


def _resident(model: Any, skeleton: Skeleton) -> tuple[tuple[int, bool, int], ...]:
    sizes: dict[int, tuple[int, bool, int]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        sizes.setdefault(
            id(storage), (storage.nbytes(), tensor.requires_grad, skeleton.repeats(name))
        )
    return tuple(sizes.values())


def step_between(points: Sequence[tuple[int, TracedStep]], at: int) -> TracedStep | None:
    """Return the step at a value of one of rank, batch size and length from those at a few values (see `between`).

    Returns:
        None where the traced steps are not the same but for their sizes.
    """
    for _, step in points[1:]:
        first = points[0][1]
        if not (
            step.training.is_like(first.training)
            and (
                step.evaluation is None
                or first.evaluation is None
                or step.evaluation.is_like(first.evaluation)
            )
            and len(step.resident) == len(first.resident)
        ):
            return None

    def line(values: Sequence[int]) -> int:
        """Go through the first and the last point; what is not traced is linear in all three."""
        if len(points) == 1:
            return values[0]
        (here, _), (there, _) = points[0], points[-1]
        return round(values[0] + (values[-1] - values[0]) * (at - here) / (there - here))

    steps = [step for _, step in points]
    evaluations = [
        (value, step.evaluation) for value, step in points if step.evaluation is not None
    ]
    return replace(
        steps[0],
        training=between([(value, step.training) for value, step in points], at),
        evaluation=between(evaluations, at) if evaluations else None,
        resident=tuple(
            (line([size for size, _, _ in same]), same[0][1], same[0][2])
            for same in zip(*(step.resident for step in steps), strict=True)
        ),
        inputs=tuple(line(sizes) for sizes in zip(*(step.inputs for step in steps), strict=True)),
        shapes=tuple(
            (
                tuple(line(sides) for sides in zip(*(shape for shape, *_ in same), strict=True)),
                *same[0][1:],
            )
            for same in zip(*(step.shapes for step in steps), strict=True)
        ),
        kernels=frozenset().union(*(step.kernels for step in steps)),
    )
