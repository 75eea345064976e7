"""A record of every allocation and release in a step on the ``meta`` device, and its peak.

The step is the model's own forward and backward pass, as autograd runs it; only the numbers are
missing. So a frozen layer's input is kept exactly where autograd keeps it, and no architecture
needs a formula of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.errors import RequestError
from rankwise.models.compat import reads_value, tensors_in
from rankwise.models.storages import StorageTracker
from rankwise.planning.repeated_blocks import Skeleton

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS = range(len(PARTS))


@dataclass(frozen=True)
class Section:
    """A part of a step that runs once, or once for each repetition of a stack's middle period.

    Attributes:
        changes: bytes by event and part (events, parts); a release is negative.
        repeats: how often it runs, one after the other.
    """

    changes: np.ndarray
    repeats: int


def peak_and_end(start: np.ndarray, sections: list[Section]) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes by part when their sum is largest, and bytes by part at the end.

    Args:
        start: bytes by part before the first section (parts,).
        sections: the step, in order.
    """
    now, peak = start, start
    for section in sections:
        net = section.changes.sum(axis=0)
        # A repeated section peaks in its last run if each run leaves something behind, else in
        # its first.
        earlier_runs = (section.repeats - 1) * net if net.sum() > 0 else 0 * net
        course = now + earlier_runs + np.cumsum(section.changes, axis=0)  # (events, parts)
        if len(course):
            top = course[course.sum(axis=1).argmax()]
            peak = top if top.sum() > peak.sum() else peak
        now = now + section.repeats * net
    return peak, now


@dataclass(frozen=True)
class Record:
    """All allocations and releases of a step, in order.

    Attributes:
        sizes: bytes by allocation.
        parts: index into `PARTS` by allocation.
        events: the number of an allocation, or its complement when it is released.
        marks: (event, repeats of the section that begins there); the first is at event 0.
    """

    sizes: np.ndarray
    parts: np.ndarray
    events: np.ndarray
    marks: tuple[tuple[int, int], ...]

    def sections(self, block: int) -> list[Section]:
        """Return the record section by section, with sizes rounded up to multiples of ``block``."""
        is_release = self.events < 0
        numbers = np.where(is_release, ~self.events, self.events)
        sizes = (-(-self.sizes // block) * block)[numbers]
        changes = np.zeros((len(numbers), len(PARTS)), dtype=np.int64)
        changes[np.arange(len(numbers)), self.parts[numbers]] = np.where(is_release, -sizes, sizes)
        ends = [event for event, _ in self.marks[1:]] + [len(numbers)]
        return [
            Section(changes[begin:end], repeats)
            for (begin, repeats), end in zip(self.marks, ends, strict=True)
        ]

    def has_events_of(self, other: "Record") -> bool:
        """Return whether both have the same events, so that only sizes differ."""
        return (
            self.marks == other.marks
            and np.array_equal(self.events, other.events)
            and np.array_equal(self.parts, other.parts)
        )


def interpolate_records(points: Sequence[tuple[int, Record]], at: int) -> Record:
    """Return the record at a rank, batch size or length from the records at a few.

    A tensor's size is a product of its dimensions: linear in the rank and in the batch size, of
    second degree at most in the length. So two or three records give all others exactly, by
    Lagrange's formula.

    Args:
        points: records of the same events, each with its rank (or batch size, or length).
        at: the rank (or batch size, or length) that is wanted.
    """
    sizes = np.zeros(len(points[0][1].sizes))
    for x, record in points:
        weight = 1.0
        for other, _ in points:
            if other != x:
                weight *= (at - other) / (x - other)
        sizes += weight * record.sizes
    return replace(points[0][1], sizes=np.rint(sizes).astype(np.int64))


class Recorder(StorageTracker):
    """Records when each storage on ``meta`` is allocated and when it is released.

    Args:
        scratch: bytes that an operator needs besides its outputs, from its arguments, by operator.
        classes: size of the logits' last dimension; None if unknown.
    """

    def __init__(self, scratch: Mapping[Any, Callable[..., int]], classes: int | None) -> None:
        super().__init__()
        self.scratch = scratch
        self.classes = classes
        self.sizes: list[int] = []
        self.parts: list[int] = []
        self.events: list[int] = []

    def allocated(self, tensor: Tensor) -> int | None:
        """Record a storage on ``meta``; ignore others."""
        if not tensor.is_meta:
            return None
        return self._allocate(tensor.untyped_storage().nbytes(), tensor)

    def freed(self, number: int) -> None:
        """Record a release."""
        self.events.append(~number)

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and record its outputs and its scratch.

        Attention masks are all ones and positions begin at 0, so every test of a value holds, and
        ``nonzero`` finds every element.
        """
        if reads_value(operator) and args[0].is_meta:
            if args[0].dtype is torch.bool:
                return True
            raise RequestError(
                f"this model's forward pass depends on the values of its {args[0].dtype} input; "
                "no plan for it"
            )
        if operator is torch.ops.aten.nonzero.default and args[0].is_meta:
            result = args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        elif _is_pointwise(operator):
            result = _run_pointwise(operator, args, kwargs)
        else:
            result = operator(*args, **kwargs)
        self.add_all(result)
        if operator in self.scratch:
            number = self._allocate(self.scratch[operator](*args, **kwargs), args[0])
            self.freed(number)
        return result

    def _allocate(self, size: int, tensor: Tensor) -> int:
        """Record an allocation of ``size`` bytes, by the shape of ``tensor``; return its number."""
        number = len(self.sizes)
        is_logits = tensor.dim() > 1 and self.classes in (tensor.shape[-1], tensor.shape[1])
        self.events.append(number)
        self.sizes.append(size)
        self.parts.append(LOGITS if is_logits else ACTIVATIONS)
        return number


@cache
def _is_pointwise(operator: Any) -> bool:
    return torch.Tag.pointwise in operator.tags


_pointwise_layouts: dict[Any, tuple[Any, Any, torch.dtype]] = {}
"""Shape, strides and precision of pointwise results, by operator and arguments (see below)."""


def _run_pointwise(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a pointwise operator, whose result on ``meta`` follows from the layouts of its arguments.

    PyTorch computes it in Python, which takes half of a trace; a model's blocks repeat, and so do
    the arguments. Operators that write to an argument always run.
    """
    key = (operator, *map(_layout, args), *((name, _layout(kwargs[name])) for name in kwargs))
    if key in _pointwise_layouts:
        shape, stride, dtype = _pointwise_layouts[key]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    result = operator(*args, **kwargs)
    is_new = isinstance(result, Tensor) and not any(
        result is value for value in (*args, *kwargs.values())
    )
    if is_new and result.is_meta:
        _pointwise_layouts[key] = (tuple(result.shape), result.stride(), result.dtype)
    return result


def _layout(value: Any) -> Any:
    """Return what a pointwise result's layout depends on: of numbers the type, of tensors more."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return type(value), str(value)


class StepRecording:
    """A step while it is recorded: its allocations, and marks where its sections begin.

    A block's forward pass begins when the block is called. Its backward pass begins when the
    gradient of its output is there.
    """

    def __init__(self, model: nn.Module, skeleton: Skeleton, recorder: Recorder) -> None:
        self._model = model
        self._recorder = recorder
        self._is_backward = False
        self._marks: list[tuple[int, int]] = [(0, 1)]
        self._hooks: list[Any] = []
        names = [name for name, _ in model.named_modules()]
        for stack in skeleton.stacks:
            full_name = next(name for name in names if f".{name}".endswith(f".{stack.name}"))
            for name, block in model.get_submodule(full_name).named_children():
                repeats = stack.repeats if name in stack.middle else 1
                self._hooks.append(block.register_forward_pre_hook(self._on_call(repeats)))
                self._hooks.append(block.register_forward_hook(self._on_output(repeats)))

    def begin_backward(self) -> None:
        """End the forward pass."""
        self._is_backward = True
        self._mark(1)

    def end_backward(self) -> None:
        """Count the parameters' gradients as such, not as activations."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                number = self._recorder.number(parameter.grad)
                if number is not None:
                    self._recorder.parts[number] = GRADIENTS

    def so_far(self) -> Record:
        """Return everything recorded up to now."""
        return Record(
            np.array(self._recorder.sizes, dtype=np.int64),
            np.array(self._recorder.parts, dtype=np.int64),
            np.array(self._recorder.events, dtype=np.int64),
            tuple(self._marks),
        )

    def remove_hooks(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _mark(self, repeats: int) -> None:
        """Begin a section that runs so often."""
        if repeats != self._marks[-1][1]:
            self._marks.append((len(self._recorder.events), repeats))

    def _on_call(self, repeats: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not self._is_backward:  # gradient checkpointing calls blocks again in backward
                self._mark(repeats)

        return hook

    def _on_output(self, repeats: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._is_backward:
                return
            for tensor in tensors_in(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._mark(repeats))
                    return

        return hook


@contextmanager
def recording(
    model: nn.Module, skeleton: Skeleton, inputs: Mapping[str, Tensor], recorder: Recorder
) -> Iterator[StepRecording]:
    """Record a step inside the ``with`` block; the model and its inputs are there before."""
    for tensor in (*model.parameters(), *model.buffers(), *inputs.values()):
        recorder.ignore(tensor)
    step = StepRecording(model, skeleton, recorder)
    try:
        with recorder.tracking():
            yield step
    finally:
        step.remove_hooks()
