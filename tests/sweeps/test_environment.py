import platform
from importlib.metadata import version

import torch

from rankwise import __version__
from rankwise.sweeps.environment import environment


def test_versions_and_hardware_are_those_of_this_process() -> None:
    found = environment()
    assert found.versions["rankwise"] == __version__
    assert found.versions["python"] == platform.python_version()
    for package in ("torch", "transformers", "peft"):
        assert found.versions[package] == version(package)
    assert found.threads >= 1
    assert found.device


def test_the_device_that_trains_is_named() -> None:
    assert environment(torch.device("cpu")).device == "cpu"
    assert environment(torch.device("mps")).device == "mps"
