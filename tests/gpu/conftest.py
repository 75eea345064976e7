"""A device for each test: the CPU, and a GPU where there is one, so that a CPU rehearses both."""

from collections.abc import Iterator

import pytest
import torch
from benchmarks.on_gpu.models import TINY, Scale

from tests.tiny_models import cores


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def scale(request: pytest.FixtureRequest) -> Iterator[Scale]:
    """Tiny models in bf16. On a CPU one core, so that the trials of a pack share passes."""
    with cores(1):
        yield Scale(TINY, torch.device(request.param), torch.bfloat16, (32, 64), 128, 3)
