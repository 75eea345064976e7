"""Accelerators by name: how much memory a program can have on each."""

import re
from dataclasses import dataclass

from rankwise.errors import RequestError, nearest

GIB, MIB = 2**30, 2**20
CONTEXT = 512 * MIB
"""What the driver takes for a CUDA context with its kernels, outside PyTorch's allocator. It differs with card,
driver and the kernels that were loaded; this is a cautious figure for cards whose context was not measured."""


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        name: as ``--device`` takes it.
        total_bytes: all memory, as the driver tells PyTorch (``torch.cuda.mem_get_info``): less than the label says.
        capability: CUDA compute capability times ten; it decides which kernels there are. 0 for the CPU. AMD's
            cards have the kernels of capability 80.
        context_bytes: taken by the driver before the first tensor.
    """

    name: str
    total_bytes: int | None
    capability: int
    context_bytes: int = CONTEXT

    @property
    def workspace_bytes(self) -> int:
        """Scratch of cuBLAS: one buffer a handle; forward and backward run on two threads with a handle each.

        8.125 MiB (``:4096:2:16:8`` KiB), on capability 90 and above 32 MiB (``:4096:8``): PyTorch's
        ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``parseChosenWorkspaceSize``.
        """
        if not self.capability:
            return 0
        return 2 * (32 * MIB if self.capability >= 90 else 8 * MIB + 128 * 1024)


def _gib(name: str, gib: float, capability: int, context: int = CONTEXT) -> tuple[str, Device]:
    return name, Device(name, round(gib * GIB), capability, context)


# The totals are those that PyTorch names in its out-of-memory messages.
DEVICES: dict[str, Device] = dict(
    [
        _gib(
            "T4", 14.56, 75, 141 * MIB
        ),  # both measured: the reference rows' t4-2026-09-15 session
        _gib("P100", 15.89, 60),
        _gib("V100-16GB", 15.77, 70),
        _gib("V100-32GB", 31.73, 70),
        _gib("RTX-3060", 11.75, 86),
        _gib("RTX-3090", 23.68, 86),
        _gib("RTX-4060-Ti-16GB", 15.70, 89),
        _gib("RTX-4080", 15.70, 89),
        _gib("RTX-4090", 23.64, 89),
        _gib("RTX-5090", 31.36, 120),
        _gib("A10", 22.05, 86),
        _gib("A10G", 22.05, 86),
        _gib("A40", 44.42, 86),
        _gib("RTX-A6000", 47.41, 86),
        _gib("RTX-6000-Ada", 47.37, 89),
        _gib("L4", 22.03, 89),
        _gib("L40S", 44.39, 89),
        _gib("A100-40GB", 39.38, 80),
        _gib("A100-80GB", 79.15, 80),
        _gib("H100", 79.10, 90),
        _gib("H200", 139.72, 90),
        _gib("B200", 178.35, 100),
        _gib("MI250X", 63.98, 80),
        _gib("MI300X", 191.98, 80),
    ]
)
CPU = Device("cpu", None, 0, 0)
GENERIC = Device("CUDA, capability 8.0", None, 80)
"""The card that a plan is for when none is named."""


def find_device(name: object) -> Device:
    """Return a device by its name, in any spelling of case, blanks and hyphens.

    Raises:
        RequestError: there is no such device (the nearest is named).
    """
    names = {_plain(known): device for known, device in DEVICES.items()} | {"cpu": CPU}
    text = _plain(str(name))
    if text in names:
        return names[text]
    close = [known for known in names if text and known.startswith(text)] or [
        known for known in names if known in text
    ]
    hint = (
        f" (did you mean {names[close[0]].name!r}?)"
        if close
        else nearest(str(name).upper(), DEVICES)
    )
    raise RequestError(
        f"device {name!r} is not known{hint}; known: {', '.join(DEVICES)}, cpu; or give --memory 24GB"
    )


def _plain(name: str) -> str:
    return (
        re.sub(r"[\s_-]+", "", name)
        .lower()
        .removeprefix("nvidia")
        .removeprefix("tesla")
        .removeprefix("geforce")
    )
