"""Accelerators by name: how much memory a program can have on each."""

import re
from dataclasses import dataclass

from rankwise.errors import RequestError, nearest

GIB, MIB = 2**30, 2**20
APPLE = 10
"""Capability of an Apple GPU: none of CUDA's kernels."""
CONTEXT = 512 * MIB
"""Bytes of a CUDA context, outside PyTorch's allocator: a cautious figure for unmeasured cards."""


@dataclass(frozen=True)
class Device:
    """An accelerator, or the CPU.

    Attributes:
        name: the name that ``--device`` takes.
        total_bytes: all memory as ``torch.cuda.mem_get_info`` reports it, less than the label says.
        capability: CUDA compute capability times ten, which decides the kernels; 0 for the CPU,
            80 for AMD's cards.
        context_bytes: bytes that the driver takes before the first tensor.
    """

    name: str
    total_bytes: int | None
    capability: int
    context_bytes: int = CONTEXT

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU."""
        return self.capability == 0

    @property
    def kind(self) -> str:
        """PyTorch's name of such devices."""
        return "cpu" if self.is_cpu else "mps" if self.capability == APPLE else "cuda"

    @property
    def allocation_block(self) -> int:
        """Bytes of which each allocation takes a multiple.

        CUDA: ``c10/cuda/CUDACachingAllocator.cpp``, ``kMinBlockSize``.
        """
        return 1 if self.is_cpu else 512

    def allocated(self, size: int) -> int:
        """Return the bytes that an allocation of ``size`` bytes takes."""
        return -(-size // self.allocation_block) * self.allocation_block

    @property
    def workspace_bytes(self) -> int:
        """Scratch of cuBLAS: one buffer a handle; forward and backward have a handle each.

        8.125 MiB (``:4096:2:16:8`` KiB), on capability 90 and above 32 MiB (``:4096:8``):
        ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``parseChosenWorkspaceSize``.
        """
        if self.is_cpu:
            return 0
        return 2 * (32 * MIB if self.capability >= 90 else 8 * MIB + 128 * 1024)


def _gib(name: str, gib: float, capability: int, context: int = CONTEXT) -> tuple[str, Device]:
    return name, Device(name, round(gib * GIB), capability, context)


# The totals are those that PyTorch names in its out-of-memory messages.
DEVICES: dict[str, Device] = dict(
    [
        # Total and context of the T4 were measured: session t4-2026-09-15 of the reference rows.
        _gib("T4", 14.56, 75, 141 * MIB),
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
"""The card that a plan assumes when the request names none."""


def find_device(name: object) -> Device:
    """Return a device by its name, however case, blanks and hyphens are written.

    Raises:
        RequestError: there is no such device; the message names the nearest.
    """
    devices = {_plain(device.name): device for device in (*DEVICES.values(), CPU)}
    text = _plain(str(name))
    if text in devices:
        return devices[text]
    similar = [key for key in devices if text and key.startswith(text)]
    similar += [key for key in devices if key in text]
    hint = nearest(str(name).upper(), DEVICES)
    if similar:
        hint = f" (did you mean {devices[similar[0]].name!r}?)"
    known = f"{', '.join(DEVICES)}, cpu; or give --memory 24GB"
    raise RequestError(f"device {name!r} is not known{hint}; known: {known}")


def _plain(name: str) -> str:
    text = re.sub(r"[\s_-]+", "", name).lower()
    return text.removeprefix("nvidia").removeprefix("tesla").removeprefix("geforce")
