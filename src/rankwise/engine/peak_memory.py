"""Memory of a training step: the largest sum of bytes of tensors alive at once."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):
    """Counts every storage from the operation that makes it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes()

        def freed(_: object, key: int = key, size: int = size) -> None:
            del self._seen[key]
            self.live -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def peak_live_bytes(step: Callable[[], object], resident: Iterable[torch.Tensor]) -> int:
    """Run a step and return the largest sum of bytes of all tensors alive during it.

    Storages are counted once, however many tensors view them. Scratch memory inside a kernel and what the allocator
    keeps in reserve are not tensors and not counted: the figure is comparable between ranks and devices, and it is
    what ``torch.cuda.max_memory_allocated`` reports, up to rounding.

    Args:
        step: forward, backward and optimizer step.
        resident: tensors that are there before it: weights, buffers, optimizer states, the batch.

    Returns:
        Bytes.
    """
    mode = _LiveBytes()
    for tensor in resident:
        mode.add(tensor)
    with mode:
        step()
    return mode.peak
