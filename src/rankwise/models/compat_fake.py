"""Private names of torch for tensors without numbers; `rankwise.models.compat` has the rules."""

from functools import cache
from typing import Any


@cache
def tensors_without_numbers() -> Any:
    """Return a mode in which new tensors say that they are on a CPU, and hold no numbers.

    ``FakeTensor`` has a page in PyTorch's documentation, but no public name. A tensor on ``meta``
    does not say where it would be, and code that asks takes other kernels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)
