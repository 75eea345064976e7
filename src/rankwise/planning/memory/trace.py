"""A record of every allocation and release in a step on the ``meta`` device, and its peak.

The step is the model's own forward and backward pass, as autograd runs it; only the numbers are
missing. So a frozen layer's input is kept exactly where autograd keeps it, and no architecture
needs a formula of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import RequestError
from rankwise.models.compat import reads_value, tensors_in
from rankwise.models.storages import StorageTracker
from rankwise.planning.repeated_blocks import Skeleton

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS = range(len(PARTS))


@dataclass(frozen=True)
class Section:
    """A part of a step that runs ``repeats`` times, as the middle period of a stack does."""

    changes: np.ndarray  # (events, parts), bytes; a release is negative
    repeats: int


def peak_and_end(start: np.ndarray, sections: list[Section]) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes by part when their sum is largest, and at the end, from those at the start."""
    now, peak = start, start
    for section in sections:
        net = section.changes.sum(axis=0)
        # A repeated section peaks in its last run if each run leaves something, else in its first.
        earlier_runs = (section.repeats - 1) * net if net.sum() > 0 else 0 * net
        course = now + earlier_runs + np.cumsum(section.changes, axis=0)  # (events, parts)
        if len(course):
            top = course[course.sum(axis=1).argmax()]
            peak = top if top.sum() > peak.sum() else peak
        now = now + section.repeats * net
    return peak, now


@dataclass(frozen=True)
class Record:
    """All allocations and releases of a step, in order."""

    sizes: np.ndarray  # bytes by allocation
    parts: np.ndarray  # index into `PARTS` by allocation
    events: np.ndarray  # the number of an allocation, or its complement when it is released
    marks: tuple[tuple[int, int], ...]  # (first event, repeats) of each section

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

    The size of a tensor is a product of its dimensions: linear in the rank and in the batch size,
    quadratic at most in the length. So Lagrange's formula on two or three records is exact.

    Args:
        points: records of the same events, each with its rank (or batch size, or length).
        at: the wanted rank (or batch size, or length).
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
    """Records when each storage on ``meta`` is allocated and released, and where sections begin.

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
        self._marks = [(0, 1)]
        self._is_backward = False

    def record(self) -> Record:
        """Return everything recorded up to now."""
        sizes, parts, events = (
            np.array(numbers, dtype=np.int64) for numbers in (self.sizes, self.parts, self.events)
        )
        return Record(sizes, parts, events, tuple(self._marks))

    def alive(self) -> list[int]:
        """Return the numbers of the allocations that are not released."""
        released = {~event for event in self.events if event < 0}
        return [event for event in self.events if event >= 0 and event not in released]

    def begin_backward(self) -> None:
        """End the forward pass."""
        self._is_backward = True
        self.begin_section(1)

    def watch(self, block: nn.Module, repeats: int) -> list[RemovableHandle]:
        """Begin a section when a block's forward or backward pass begins; return the hooks.

        The backward pass begins when the gradient of the block's output is there.
        """

        def on_call(module: nn.Module, args: Any) -> None:
            if not self._is_backward:  # gradient checkpointing calls blocks again in backward
                self.begin_section(repeats)

        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            if self._is_backward:
                return
            trained = next((out for out in tensors_in(output) if out.requires_grad), None)
            if trained is not None:
                trained.register_hook(lambda gradient: self.begin_section(repeats))

        return [block.register_forward_pre_hook(on_call), block.register_forward_hook(on_output)]

    def begin_section(self, repeats: int) -> None:
        """Begin a part of the step that the whole model has ``repeats`` times."""
        if repeats != self._marks[-1][1]:
            self._marks.append((len(self.events), repeats))

    def allocated(self, tensor: Tensor) -> int | None:
        """Record a storage on ``meta``; ignore others."""
        return self._allocate(tensor.untyped_storage().nbytes(), tensor) if tensor.is_meta else None

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
            dtype = args[0].dtype
            raise RequestError(
                f"the forward pass depends on the values of a {dtype} input; no plan"
            )
        if operator is torch.ops.aten.nonzero.default and args[0].is_meta:
            result = args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        else:
            result = _run_once_for_each_layout(operator, args, kwargs)
        self.add_all(result)
        if operator in self.scratch:
            number = self._allocate(self.scratch[operator](*args, **kwargs), args[0])
            self.freed(number)
        return result

    def _allocate(self, size: int, tensor: Tensor) -> int:
        """Record an allocation whose part follows from a tensor's shape; return its number."""
        number = len(self.sizes)
        is_logits = tensor.dim() > 1 and self.classes in (tensor.shape[-1], tensor.shape[1])
        self.events.append(number)
        self.sizes.append(size)
        self.parts.append(LOGITS if is_logits else ACTIVATIONS)
        return number


_layouts: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
"""Shape, strides and precision of operators' new tensors, by operator and arguments."""
_view_operators: set[Any] = set()
"""Operators that returned one of their arguments, or a view of one."""


def _run_once_for_each_layout(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that makes one new tensor once for each layout of its arguments.

    The layout of the result follows from theirs. PyTorch computes it in Python, which takes half
    of a trace.
    """
    if operator in _view_operators:
        return operator(*args, **kwargs)
    key = (operator, _layout(args), *((name, _layout(kwargs[name])) for name in kwargs))
    if key in _layouts:
        shape, stride, dtype = _layouts[key]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    result = operator(*args, **kwargs)
    if not isinstance(result, Tensor) or not result.is_meta:
        return result
    storage = result.untyped_storage()
    if any(tensor.untyped_storage() is storage for tensor in tensors_in((args, kwargs))):
        _view_operators.add(operator)
    elif storage.nbytes() == torch.empty_like(result).untyped_storage().nbytes():
        _layouts[key] = (result.shape, result.stride(), result.dtype)
    return result


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_layout, value))
    return type(value), str(value)


@contextmanager
def recording(
    model: nn.Module, skeleton: Skeleton, inputs: Mapping[str, Tensor], recorder: Recorder
) -> Iterator[None]:
    """Record a step inside the ``with`` block; the model and its inputs are there before."""
    for tensor in (*model.parameters(), *model.buffers(), *inputs.values()):
        recorder.ignore(tensor)
    names = [name for name, _ in model.named_modules()]
    hooks = []
    for stack in skeleton.stacks:
        full_name = next(name for name in names if f".{name}".endswith(f".{stack.name}"))
        for name, block in model.get_submodule(full_name).named_children():
            hooks += recorder.watch(block, stack.repeats if name in stack.middle else 1)
    try:
        with recorder.tracking():
            yield
    finally:
        for hook in hooks:
            hook.remove()
