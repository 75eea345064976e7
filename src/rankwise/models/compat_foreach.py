"""PyTorch's operations on lists of tensors: a few kernels on a GPU, however long the lists are.

They have no public names; torch.optim is built on them. Checked on torch 2.10 and 2.13;
tests/models/test_compat_foreach.py reports a name that is gone.
"""

from collections.abc import Sequence

import torch


def foreach_copy(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source into its target, whose precision may differ."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def foreach_add(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Add each source to its target."""
    if targets:
        torch._foreach_add_(list(targets), list(sources))


def foreach_scale(tensors: Sequence[torch.Tensor], factors: Sequence[float]) -> None:
    """Multiply each tensor by its factor, in place."""
    if tensors:
        torch._foreach_mul_(list(tensors), list(factors))
