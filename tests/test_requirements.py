"""The declared version ranges: `make test-oldest` must really test their lowest versions."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    """Return a package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, Version]:
    """Return the versions that a constraints file pins, by package."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line]
    pairs = [line.split(" ")[0].split("==") for line in lines if not line.startswith("#")]
    return {normal(name): Version(version) for name, version in pairs}


def declared() -> list[Requirement]:
    """Return the requirements of the package and of the extras that the tests need."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["samples"], *extras["dev"]]
    return [Requirement(line) for line in lines]


def test_the_oldest_environment_pins_every_declared_floor() -> None:
    oldest = pins("constraints-oldest.txt")
    for requirement in declared():
        floors = [part.version for part in requirement.specifier if part.operator == ">="]
        assert [oldest[normal(requirement.name)]] == [Version(floor) for floor in floors], (
            f"{requirement} is not tested at its lowest version"
        )


def test_the_pinned_environment_is_within_the_declared_ranges() -> None:
    pinned = pins("constraints.txt")
    for requirement in declared():
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), requirement
