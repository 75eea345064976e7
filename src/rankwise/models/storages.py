"""Tracking of tensor memory: when each storage is allocated and when it is freed."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankwise.models.compat import intercept_operators, tensors_in


class StorageTracker(ABC):
    """Calls `allocated` when a PyTorch operator makes a storage, and `freed` when it is released.

    Tensors that view one storage count once. A subclass decides what to record.
    """

    def __init__(self) -> None:
        self._alive: dict[int, tuple[weakref.ref[Any], int | None]] = {}

    @abstractmethod
    def allocated(self, tensor: torch.Tensor) -> int | None:
        """Record a new storage from its first tensor; return a number for `freed`, or None."""

    @abstractmethod
    def freed(self, number: int) -> None:
        """Record the release of the storage for which `allocated` returned this number."""

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and track its result."""
        result = operator(*args, **kwargs)
        self.add_all(result)
        return result

    def add_all(self, result: Any) -> None:
        """Add every tensor of an operator's result."""
        for tensor in tensors_in(result):
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        """Track a tensor's storage as a new one, unless it is tracked already."""
        if id(tensor.untyped_storage()) not in self._alive:
            self._track(tensor, self.allocated(tensor))

    def ignore(self, tensor: torch.Tensor) -> None:
        """Report neither the allocation nor the release of a tensor's storage."""
        self._track(tensor, None)

    def number(self, tensor: torch.Tensor) -> int | None:
        """Return the number that `allocated` gave a tensor's storage; None if it gave none."""
        return self._alive.get(id(tensor.untyped_storage()), (None, None))[1]

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Track every storage that is allocated inside the ``with`` block."""
        with intercept_operators(self.run):
            yield

    def _track(self, tensor: torch.Tensor, number: int | None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)

        def released(_: object) -> None:
            del self._alive[key]
            if number is not None:
                self.freed(number)

        self._alive[key] = (weakref.ref(storage, released), number)
