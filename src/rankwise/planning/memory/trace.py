"""One training step on the ``meta`` device: every allocation and release, in order, and what they add up to.

The step is the model's own forward and backward pass, as autograd runs it; only the numbers are missing. So a frozen
layer's input is kept exactly where autograd keeps it, and an architecture needs no formula of its own.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankwise.errors import RequestError
from rankwise.planning.params import Skeleton

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
GRADIENTS, ACTIVATIONS, LOGITS = (
    PARTS.index(part) for part in ("gradients", "activations", "logits")
)
BLOCK = 512  # bytes: CUDA's caching allocator hands out multiples (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)


@dataclass(frozen=True)
class Piece:
    """A stretch of a step that runs once, or once for each repetition of a stack's middle period.

    Attributes:
        changes: bytes by event and part, (events, parts); a release is negative.
        repeats: how often it runs, one after the other.
    """

    changes: np.ndarray
    repeats: int


def highest(start: np.ndarray, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts at the moment when their sum is largest, and the parts at the end.

    Args:
        start: bytes by part before the first piece, (parts,).
        pieces: in order.
    """
    now, peak = start, start
    for piece in pieces:
        net = piece.changes.sum(axis=0)
        # A repeated stretch is highest in its last run if each run leaves something behind, else in its first.
        ahead = (piece.repeats - 1) * net if net.sum() > 0 else 0 * net
        course = now + ahead + np.cumsum(piece.changes, axis=0)  # (events, parts)
        if len(course):
            top = course[course.sum(axis=1).argmax()]
            peak = top if top.sum() > peak.sum() else peak
        now = now + piece.repeats * net
    return peak, now


@dataclass(frozen=True)
class Record:
    """All that was allocated and released, in order.

    Attributes:
        sizes: bytes by allocation.
        parts: index into `PARTS` by allocation.
        events: an allocation's number, or its complement for its release.
        marks: (event, repeats of the stretch that begins there), the first at event 0.
    """

    sizes: np.ndarray
    parts: np.ndarray
    events: np.ndarray
    marks: tuple[tuple[int, int], ...]

    def pieces(self, block: int) -> list[Piece]:
        """Return the record cut where a stretch begins, with sizes rounded up to multiples of ``block``."""
        numbers = np.where(self.events < 0, ~self.events, self.events)
        sizes = (-(-self.sizes // block) * block)[numbers]
        table = np.zeros((len(numbers), len(PARTS)), dtype=np.int64)
        table[np.arange(len(numbers)), self.parts[numbers]] = np.where(
            self.events < 0, -sizes, sizes
        )
        ends = [at for at, _ in self.marks[1:]] + [len(numbers)]
        return [
            Piece(table[at:end], repeats)
            for (at, repeats), end in zip(self.marks, ends, strict=True)
        ]

    def is_like(self, other: "Record") -> bool:
        """Tell whether both have the same events, so that only sizes differ."""
        return (
            self.marks == other.marks
            and np.array_equal(self.events, other.events)
            and np.array_equal(self.parts, other.parts)
        )


def between(points: Sequence[tuple[int, Record]], at: int) -> Record:
    """Return the record at a value of rank, batch size or length from those at a few values.

    Every tensor's size is a product of its dimensions: linear in the rank and in the batch size, of second degree at
    most in the length. So two or three values tell all others, exactly.
    """
    sizes = np.zeros(len(points[0][1].sizes))
    for here, record in points:
        share = 1.0
        for there, _ in points:
            if there != here:
                share *= (at - there) / (here - there)
        sizes += share * record.sizes
    return replace(points[0][1], sizes=np.rint(sizes).astype(np.int64))


class Recorder(TorchDispatchMode):
    """Records each storage when an operator makes it and when it is released.

    Args:
        scratch: operators' further needs, by operator, from their arguments.
        classes: size of the logits' last dimension.
    """

    def __init__(self, scratch: dict[Any, Callable[..., int]], classes: int | None) -> None:
        super().__init__()
        self.scratch = scratch
        self.classes = classes
        self.sizes: list[int] = []
        self.parts: list[int] = []
        self.events: list[int] = []  # allocation number, or its complement for a release
        self._seen: dict[int, tuple[weakref.ref[Any], int | None]] = {}

    def know(self, tensor: torch.Tensor) -> None:
        """Take note of a tensor that is there before the step."""
        self._add(tensor, None)

    def number(self, tensor: torch.Tensor) -> int | None:
        """Return the number of a tensor's allocation; None if it was there before."""
        seen = self._seen.get(id(tensor.untyped_storage()))
        return None if seen is None else seen[1]

    def _add(self, tensor: torch.Tensor, number: int | None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)

        def released(_: object) -> None:
            del self._seen[key]
            if number is not None:
                self.events.append(~number)

        self._seen[key] = (weakref.ref(storage, released), number)
        if number is not None:
            self._allocate(storage.nbytes(), tensor)

    def _allocate(self, size: int, tensor: torch.Tensor) -> None:
        self.events.append(len(self.sizes))
        self.sizes.append(size)
        is_logits = tensor.dim() > 1 and self.classes in (tensor.shape[-1], tensor.shape[1])
        self.parts.append(LOGITS if is_logits else ACTIVATIONS)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return _typical(args[0])
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            result = args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        else:
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if (
                isinstance(leaf, torch.Tensor)
                and leaf.is_meta
                and id(leaf.untyped_storage()) not in self._seen
            ):
                self._add(leaf, len(self.sizes))
        if func in self.scratch:
            number = len(self.sizes)
            self._allocate(self.scratch[func](*args, **kwargs), args[0])
            self.events.append(~number)
        return result


def _typical(tensor: torch.Tensor) -> bool:
    """Answer a model that looks at a value: masks are all ones, positions start at 0, every test of them holds.

    For the same reason ``nonzero`` finds every element.
    """
    if tensor.dtype is torch.bool:
        return True
    raise RequestError(
        f"this model's forward pass depends on the values of its {tensor.dtype} input; no plan for it"
    )


class Markers:
    """Notes where in the record each repeated stretch begins and ends, in forward and backward.

    A block's forward begins when it is called. Its backward begins when the gradient of its output is there.
    """

    def __init__(self, model: nn.Module, skeleton: Skeleton, recorder: Recorder) -> None:
        self.recorder = recorder
        self.backward = False
        self.marks: list[tuple[int, int]] = [
            (0, 1)
        ]  # (event, repeats of the stretch that begins there)
        self._hooks: list[Any] = []
        for stack in skeleton.stacks:
            whole = next(
                name for name, _ in model.named_modules() if f".{name}".endswith(f".{stack.name}")
            )
            for name, block in model.get_submodule(whole).named_children():
                repeats = stack.repeats if name in stack.middle else 1
                self._hooks.append(block.register_forward_pre_hook(self._on_call(repeats)))
                self._hooks.append(block.register_forward_hook(self._on_output(repeats)))

    def begin_backward(self) -> None:
        """Take note that forward is over."""
        self.backward = True
        self.mark(1)

    def mark(self, repeats: int) -> None:
        """Begin a stretch."""
        if repeats != self.marks[-1][1]:
            self.marks.append((len(self.recorder.events), repeats))

    def _on_call(self, repeats: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not self.backward:  # or it is checkpointing's second forward
                self.mark(repeats)

        return hook

    def _on_output(self, repeats: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self.backward:
                return
            for leaf in tree_leaves(output):
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                    leaf.register_hook(lambda gradient: self.mark(repeats))
                    return

        return hook

    def record(self) -> Record:
        """Return everything up to now."""
        return Record(
            np.array(self.recorder.sizes, dtype=np.int64),
            np.array(self.recorder.parts, dtype=np.int64),
            np.array(self.recorder.events, dtype=np.int64),
            tuple(self.marks),
        )

    def remove(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()


@contextmanager
def recording(
    model: nn.Module,
    skeleton: Skeleton,
    inputs: dict[str, torch.Tensor],
    scratch: dict[Any, Callable[..., int]],
    classes: int | None,
) -> Iterator[tuple[Recorder, Markers]]:
    """Record what happens inside, on a model that is there before."""
    recorder = Recorder(scratch, classes)
    for tensor in (*model.parameters(), *model.buffers(), *inputs.values()):
        recorder.know(tensor)
    markers = Markers(model, skeleton, recorder)
    try:
        with recorder:
            yield recorder, markers
    finally:
        markers.remove()
