"""What optimizers keep for each trainable parameter, and what a step of theirs takes meanwhile."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Shape = tuple[int, ...]
MIN_8BIT = 4096
"""Parameters below this many numbers keep 32-bit states (``bitsandbytes/optim/optimizer.py``, ``min_8bit_size``)."""
STATE_BLOCK = 256
"""Numbers with one scale in 8-bit states (8-bit Optimizers, Dettmers et al. 2022, section 2)."""
MIN_PAGED = 100_000
"""Parameters below this many numbers are not paged (``bitsandbytes/optim/optimizer.py``, ``get_state_buffer``)."""


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes of an optimizer for all trainable parameters together.

    Attributes:
        states: on the device between steps.
        paged: in unified memory, which the driver moves to the host when the device is full. PyTorch does not count
            it.
        scratch: taken during a step and released.
    """

    states: int
    paged: int
    scratch: int


def optimizer_memory(
    name: str, shapes: Iterable[tuple[Shape, int, int]], *, on_cpu: bool, block: int = 1
) -> OptimizerMemory:
    """Return what an optimizer takes for trainable parameters of these shapes.

    torch.optim's states have the parameter's precision; those of the others have 32 bits (or 8) whatever that is.
    torch.optim steps all parameters at once on CUDA (``foreach``), one after the other on the CPU.

    Args:
        name: one of `rankwise.planning.config.OPTIMIZERS`.
        shapes: of the trainable parameters, each with the bytes of a number in it and how many there are.
        on_cpu: plan for the CPU.
        block: allocations are rounded up to multiples of it.
    """
    states = paged = largest = total = update = 0
    for shape, width, times in shapes:
        count = math.prod(shape)
        largest, total = max(largest, width * count), total + width * count * times
        # Beside the squared gradient and the update, fp32 copies of a parameter and its gradient in half precision.
        update = max(update, (8 if width == 4 else 16) * count)
        size = times * sum(-(-part // block) * block for part in STATES[name](shape, width))
        if name.startswith("paged") and count >= MIN_PAGED:
            paged += size
        else:
            states += size
    if name == "adamw":
        # sqrt(v); on the CPU its quotient too, beside that of the parameter before
        # (torch/optim/adam.py, _multi_tensor_adam and _single_tensor_adam).
        scratch = 3 * largest if on_cpu else total
    elif name == "adafactor":
        # One parameter at a time (transformers/optimization.py, Adafactor.step).
        scratch = update
    else:
        scratch = 0  # in place: torch/optim/sgd.py after its first step, bitsandbytes' kernels
    return OptimizerMemory(states, paged, scratch)


def _moments(count: int) -> Callable[[Shape, int], list[int]]:
    """Zeros like the parameter (torch/optim/adam.py, ``_init_group``), or a copy of its gradient (sgd.py)."""
    return lambda shape, width: [width * math.prod(shape)] * count


def _moments_32bit(count: int) -> Callable[[Shape, int], list[int]]:
    return lambda shape, width: [4 * math.prod(shape)] * count


def _moments_8bit(count: int) -> Callable[[Shape, int], list[int]]:
    def sizes(shape: Shape, width: int) -> list[int]:
        numbers = math.prod(shape)
        if numbers < MIN_8BIT:
            return [4 * numbers] * count
        return [numbers, 4 * math.ceil(numbers / STATE_BLOCK)] * count

    return sizes


def _adafactor(shape: Shape, width: int) -> list[int]:
    """Row and column means of the squared gradient (Shazeer and Stern 2018, section 3); no first moment."""
    if len(shape) < 2:
        return [4 * math.prod(shape)]
    return [4 * math.prod(shape[:-1]), 4 * math.prod((*shape[:-2], shape[-1]))]


STATES: dict[str, Callable[[Shape, int], list[int]]] = {
    "adamw": _moments(2),
    "adamw-8bit": _moments_8bit(2),
    "paged-adamw": _moments_32bit(2),
    "paged-adamw-8bit": _moments_8bit(2),
    "sgd": _moments(1),  # momentum
    "adafactor": _adafactor,
    "lion": _moments_32bit(1),
}
"""Bytes of each tensor that an optimizer keeps for a parameter of a shape, whose numbers have so many bytes."""
