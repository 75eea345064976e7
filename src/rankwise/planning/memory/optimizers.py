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
    """A trainable parameter of the shortened model; the whole model has ``repeats`` of it."""

    shape: tuple[int, ...]
    itemsize: int  # bytes of a number
    repeats: int = 1

    @property
    def numbers(self) -> int:
        """Count of its numbers."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numbers * self.itemsize


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes of an optimizer for all trainable parameters together."""

    states: int  # on the device between steps
    paged: int  # states in unified memory, which PyTorch does not count
    scratch: int  # allocated during a step and released


def optimizer_memory(
    name: str, parameters: Iterable[TrainedParameter], *, on_cpu: bool, block: int = 1
) -> OptimizerMemory:
    """Return the memory of an optimizer.

    States of torch.optim have the precision of the parameter, others 32 bits (or 8). torch.optim
    steps all parameters at once on CUDA (``foreach``), one after the other on the CPU.

    Args:
        name: one of `rankwise.planning.config.Optimizer`.
        parameters: the trainable parameters.
        on_cpu: plan for the CPU.
        block: bytes of which each allocation takes a multiple.
    """
    states = paged = largest = total = largest_update = 0
    for parameter in parameters:
        largest = max(largest, parameter.size)
        total += parameter.size * parameter.repeats
        # Adafactor: the squared gradient and the update; for a parameter in half precision also
        # fp32 copies of it and its gradient.
        update = (8 if parameter.itemsize == 4 else 16) * parameter.numbers
        largest_update = max(largest_update, update)
        rounded = sum(-(-part // block) * block for part in STATES[name](parameter))
        if name.startswith("paged") and parameter.numbers >= MIN_PAGED:
            paged += parameter.repeats * rounded
        else:
            states += parameter.repeats * rounded
    scratch = 0  # in place: torch/optim/sgd.py after its first step, kernels of bitsandbytes
    if name == "adamw":
        # sqrt(v); on the CPU also its quotient, while that of the previous parameter is there
        # (torch/optim/adam.py, _multi_tensor_adam and _single_tensor_adam).
        scratch = 3 * largest if on_cpu else total
    elif name == "adafactor":
        scratch = largest_update  # transformers/optimization.py, Adafactor.step
    return OptimizerMemory(states, paged, scratch)


def _adam_8bit(parameter: TrainedParameter) -> list[int]:
    if parameter.numbers < MIN_8BIT:
        return [4 * parameter.numbers] * 2
    return [parameter.numbers, 4 * math.ceil(parameter.numbers / STATE_BLOCK)] * 2


def _adafactor(parameter: TrainedParameter) -> list[int]:
    """Size row and column means of the squared gradient (Shazeer and Stern 2018, section 3)."""
    shape = parameter.shape
    if len(shape) < 2:
        return [4 * parameter.numbers]
    return [4 * math.prod(shape[:-1]), 4 * math.prod((*shape[:-2], shape[-1]))]


STATES: dict[str, Callable[[TrainedParameter], list[int]]] = {
    "adamw": lambda parameter: [parameter.size] * 2,  # torch/optim/adam.py, _init_group
    "adamw-8bit": _adam_8bit,
    "paged-adamw": lambda parameter: [4 * parameter.numbers] * 2,
    "paged-adamw-8bit": _adam_8bit,
    "sgd": lambda parameter: [parameter.size],  # the momentum: torch/optim/sgd.py
    "adafactor": _adafactor,
    "lion": lambda parameter: [4 * parameter.numbers],
}
"""Bytes of each tensor that an optimizer keeps for a parameter."""
