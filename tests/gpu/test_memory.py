"""Memory of a GPU: a pack that does not fit goes on in parts, and the plan is true."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.on_gpu import memory
from benchmarks.on_gpu.device import free_memory, peak_allocated
from benchmarks.on_gpu.lengths import make_examples
from benchmarks.on_gpu.models import SIZES, Scale, random_base
from benchmarks.on_gpu.ways import make_trial

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.trial import FinishedTrial
from rankwise.models.base_model import BaseModel

pytestmark = pytest.mark.gpu

EXAMPLES = make_examples([512] * 16)
CONFIG = TrainingConfig(batch_size=8, max_steps=2, precision="bf16")


@pytest.fixture
def gpu() -> Iterator[Scale]:
    device = torch.device("cuda")
    yield Scale(SIZES, device, torch.bfloat16, (512, 512), 4096, 2)
    torch.cuda.set_per_process_memory_fraction(1.0)
    free_memory(device)


def train(base: BaseModel, pack: int) -> list[FinishedTrial]:
    trials = [make_trial(8, seed) for seed in range(pack)]
    engine = FusedEngine(base, EXAMPLES, EXAMPLES.take([0]), CONFIG, pack_size=pack)
    return list(engine.train(trials))


def test_a_pack_that_does_not_fit_is_halved_and_finishes(gpu: Scale) -> None:
    base = random_base(gpu.sizes["135M"], gpu)
    expected: list[FinishedTrial] = []
    alone = peak_allocated(gpu.device, lambda: train(base, 1))
    packed = peak_allocated(gpu.device, lambda: expected.extend(train(base, 8)))
    assert alone is not None and packed is not None and alone < packed
    free_memory(gpu.device)
    total = torch.cuda.get_device_properties(gpu.device).total_memory
    torch.cuda.set_per_process_memory_fraction((alone + packed) / 2 / total)
    finished = train(base, 8)
    assert [each.trial for each in finished] == [each.trial for each in expected]
    for one, other in zip(finished, expected, strict=True):
        assert not one.diverged
        pairs = ([row["train_loss"] for row in each.steps] for each in (one, other))
        assert next(pairs) == pytest.approx(next(pairs), rel=torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("engine", memory.ENGINES)
def test_the_plan_is_what_the_gpu_allocates(
    gpu: Scale, tmp_path: Path, engine: str, checkpointing: bool, quantization: str
) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    row = {"batch": 4, "quantization": quantization, "checkpointing": checkpointing}
    size, row["engine"] = gpu.sizes["135M"], engine
    planned = memory.planned_bytes(size, gpu, 512, row)
    measured = memory.measured_bytes(size, gpu, 512, row)
    assert planned == pytest.approx(measured, rel=0.05)  # the goal at worst
