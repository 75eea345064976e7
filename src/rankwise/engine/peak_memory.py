"""Peak memory of a training step: the largest sum of bytes of tensors alive at once."""

from collections.abc import Callable, Iterable

import torch

from rankwise.models.storages import StorageTracker


class _LiveBytes(StorageTracker):
    """Sums the bytes of all storages that are alive, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0

    def allocated(self, tensor: torch.Tensor) -> int:
        size = tensor.untyped_storage().nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def freed(self, number: int) -> None:
        self.live -= number


def peak_live_bytes(step: Callable[[], object], resident: Iterable[torch.Tensor]) -> int:
    """Run a step and return the largest sum of bytes of all tensors alive during it.

    A storage counts once, however many tensors view it. Scratch memory inside a kernel and the
    allocator's reserve are not tensors and do not count. So the figure is comparable between ranks
    and devices, and equals ``torch.cuda.max_memory_allocated`` up to rounding.

    Args:
        step: runs a forward pass, a backward pass and an optimizer step.
        resident: tensors that exist before the step: weights, buffers, optimizer states, the batch.
    """
    live_bytes = _LiveBytes()
    for tensor in resident:
        live_bytes.add(tensor)
    with live_bytes.tracking():
        step()
    return live_bytes.peak


def optimizer_states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the tensors that an optimizer keeps between steps."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]
