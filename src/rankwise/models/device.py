"""The device that trains, and the precision in which the base model computes on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from rankwise.errors import RequestError
from rankwise.models.out_of_memory import is_out_of_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions that may be asked for; the first is that of a CPU by default."""

BF16_CAPABILITY = (8, 0)  # Ampere: the first NVIDIA GPUs that multiply in bf16
FP16_CAPABILITY = (7, 0)  # Volta: the first with fast products in fp16, such as V100 and T4


def find_torch_device(name: str) -> torch.device:
    """Return the device of a request; ``auto`` takes a GPU if there is one.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        RequestError: The device is not there; the message names those that are.
    """
    found = available_devices()
    if name == "auto":
        return torch.device(found[-1])
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name not in found:
        if len(found) == 1:
            raise RequestError(f"device {name!r}: PyTorch finds no GPU; here is cpu")
        here = ", ".join(found)
        raise RequestError(f"device {name!r}: there is no such device; here are {here}")
    return torch.device(name)


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a precision: ``bf16`` for ``torch.bfloat16``."""
    return next(name for name, each in DTYPES.items() if each == dtype)


def available_devices() -> list[str]:
    """Return the names of the devices that PyTorch finds, the one to take by default last."""
    names = ["cpu"]
    if torch.backends.mps.is_available():
        names.append("mps")
    if torch.cuda.is_available():
        current = torch.cuda.current_device()
        indices = [index for index in range(torch.cuda.device_count()) if index != current]
        names += [f"cuda:{index}" for index in (*indices, current)]
    return names


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the base's weights and products on a device.

    ``auto`` is bf16 on a GPU that has it in hardware, fp16 on the two generations before (V100,
    T4), and fp32 elsewhere. PyTorch cannot tell whether an Apple GPU has bf16, so ``auto`` is fp32
    there; bf16 and fp16 may be asked for.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: A device from `find_torch_device`.

    Raises:
        RequestError: The device cannot hold a number of this type.
    """
    if precision != "auto":
        try:
            torch.zeros(1, dtype=DTYPES[precision], device=device)
        except (TypeError, RuntimeError) as error:  # bf16 on an Apple GPU before macOS 14
            if not is_out_of_memory(error):  # a full GPU is the business of loading
                problem = f"precision {precision!r} is not there on {device}"
                raise RequestError(f"{problem}; take fp32 or fp16") from None
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    if capability >= BF16_CAPABILITY or torch.version.hip is not None:
        return torch.bfloat16
    return torch.float16 if capability >= FP16_CAPABILITY else torch.float32


_planned: ContextVar[str] = ContextVar("kind of device that a plan is for", default="meta")


@contextmanager
def kernels_of(kind: str) -> Iterator[None]:
    """Let tensors on ``meta`` stand for those of a kind of device inside the ``with`` block."""
    token = _planned.set(kind)
    try:
        yield
    finally:
        _planned.reset(token)


def kind_of_device(tensor: torch.Tensor) -> str:
    """Return the kind of device whose kernels a tensor takes: ``cpu``, ``cuda`` or ``mps``."""
    return _planned.get() if tensor.is_meta else tensor.device.type
