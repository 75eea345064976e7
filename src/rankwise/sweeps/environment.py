"""The versions and the hardware that a sweep runs on, and a note on its random seeds.

Every source of randomness in a sweep is fixed:

- ``Trial.seed`` draws an adapter's initial values and a new head, and orders the training data.
- `rankwise.tasks.splits.SPLIT_SEED` splits the data into training, held-out and test examples. It
  is the same in every sweep, so all trials on a file are judged by the same examples.
- ``torch.manual_seed(0)`` in `rankwise.models.base_model` initialises what a checkpoint lacks;
  each trial draws its head again.
- ``default_rng(0)`` in `rankwise.sweeps.dry_run` picks the examples that are timed; no trial
  depends on it.

The same versions on the same hardware give the same losses, so a sweep records both.
"""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rankwise._version import __version__
from rankwise.store.records import Environment

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")


def environment(device: "torch.device | None" = None) -> Environment:
    """Return the versions and the hardware of this process.

    ``device`` is the one that trains; the GPU, if there is one, unless it is named.
    """
    import torch

    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    versions = {"rankwise": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Environment(
        versions=versions,
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if on_gpu else str(device or "cpu"),
    )
