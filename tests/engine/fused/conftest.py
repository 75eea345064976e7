"""Fixtures of the fused engine's tests."""

import pytest

from tests.engine.parity import Tiny
from tests.tiny_models import load_tiny


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = getattr(request, "param", "bert")
    return load_tiny(name, tmp_path_factory.mktemp(name))
