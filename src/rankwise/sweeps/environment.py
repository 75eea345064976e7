"""The versions and the hardware that a sweep ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rankwise._version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")


def environment() -> dict[str, Any]:
    """Return versions and hardware, for the record."""
    import torch

    versions = {"rankwise": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
