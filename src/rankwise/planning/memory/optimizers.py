"""Optimizer states of each trainable parameter, and the scratch memory of an optimizer step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MIN_8BIT = 4096
"""Smaller parameters keep 32-bit states (bitsandbytes/optim/optimizer.py, ``min_8bit_size``)."""
STATE_BLOCK = 256
"""Numbers with one scale in 8-bit states (8-bit Optimizers, Dettmers et al. 2022, section 2)."""
MIN_PAGED = 100_000
"""Smaller parameters are not paged (bitsandbytes/optim/optimizer.py, ``get_state_buffer``)."""


@dataclass(frozen=True)
class TrainedParameter:
    """A trainable parameter of the shortened model.

    Attributes:
        shape: its dimensions.
        itemsize: bytes of a number.
        repeats: how many parameters of the whole model it stands for.
    """

    shape: tuple[int, ...]
    itemsize: int
    repeats: int = 1

    @property
    def numbers(self) -> int:
        """Count the numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes of an optimizer for all trainable parameters together.

    Attributes:
        states: states on the device between steps.
        paged: states in unified memory, which the driver moves to the host when the device is
            full. PyTorch does not count them.
        scratch: bytes allocated during a step and released.
    """

    states: int
    paged: int
    scratch: int


def optimizer_memory(
    name: str, parameters: Iterable[TrainedParameter], *, on_cpu: bool, block: int = 1
) -> OptimizerMemory:
    """Return the memory of an optimizer.

    torch.optim's states have the parameter's precision; those of the others have 32 bits (or 8),
    whatever that is. torch.optim steps all parameters at once on CUDA (``foreach``), one after the
    other on the CPU.

    Args:
        name: one of `rankwise.planning.config.OPTIMIZERS`.
        parameters: the trainable parameters.
        on_cpu: plan for the CPU.
        block: allocations are rounded up to multiples of it, in bytes.
    """
    states = paged = largest = total = largest_update = 0
    for parameter in parameters:
        size = parameter.numbers * parameter.itemsize
        largest = max(largest, size)
        total += size * parameter.repeats
        # Adafactor: the squared gradient and the update; for a parameter in half precision also
        # fp32 copies of it and its gradient.
        update = (8 if parameter.itemsize == 4 else 16) * parameter.numbers
        largest_update = max(largest_update, update)
        rounded = sum(-(-part // block) * block for part in STATES[name](parameter))
        if name.startswith("paged") and parameter.numbers >= MIN_PAGED:
            paged += parameter.repeats * rounded
        else:
            states += parameter.repeats * rounded
    if name == "adamw":
        # sqrt(v); on the CPU also its quotient, while that of the previous parameter is there
        # (torch/optim/adam.py, _multi_tensor_adam and _single_tensor_adam).
        scratch = 3 * largest if on_cpu else total
    elif name == "adafactor":
        # One parameter at a time (transformers/optimization.py, Adafactor.step).
        scratch = largest_update
    else:
        scratch = 0  # in place: torch/optim/sgd.py after its first step, bitsandbytes' kernels
    return OptimizerMemory(states, paged, scratch)


def _adam(parameter: TrainedParameter) -> list[int]:
    """Size two states like the parameter (torch/optim/adam.py, ``_init_group``)."""
    return [parameter.itemsize * parameter.numbers] * 2


def _momentum(parameter: TrainedParameter) -> list[int]:
    """Size a copy of the gradient (torch/optim/sgd.py)."""
    return [parameter.itemsize * parameter.numbers]


def _adam_32bit(parameter: TrainedParameter) -> list[int]:
    return [4 * parameter.numbers] * 2


def _adam_8bit(parameter: TrainedParameter) -> list[int]:
    if parameter.numbers < MIN_8BIT:
        return _adam_32bit(parameter)
    return [parameter.numbers, 4 * math.ceil(parameter.numbers / STATE_BLOCK)] * 2


def _lion(parameter: TrainedParameter) -> list[int]:
    return [4 * parameter.numbers]


def _adafactor(parameter: TrainedParameter) -> list[int]:
    """Size row and column means of the squared gradient (Shazeer and Stern 2018, section 3)."""
    shape = parameter.shape
    if len(shape) < 2:
        return [4 * parameter.numbers]
    return [4 * math.prod(shape[:-1]), 4 * math.prod((*shape[:-2], shape[-1]))]


STATES: dict[str, Callable[[TrainedParameter], list[int]]] = {
    "adamw": _adam,
    "adamw-8bit": _adam_8bit,
    "paged-adamw": _adam_32bit,
    "paged-adamw-8bit": _adam_8bit,
    "sgd": _momentum,
    "adafactor": _adafactor,
    "lion": _lion,
}
"""Bytes of each tensor that an optimizer keeps for a parameter."""
