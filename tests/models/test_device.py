import pytest
import torch

from rankwise.errors import RequestError
from rankwise.models.device import (
    available_devices,
    find_dtype,
    find_torch_device,
    precision_name,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch say that there are two GPUs, of which the second is the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_taken_if_there_is_one() -> None:
    assert find_torch_device("auto") == find_torch_device("cuda") == torch.device("cuda", 1)
    assert find_torch_device("cuda:0") == torch.device("cuda", 0)
    assert find_torch_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("gpus")
def test_a_number_that_no_gpu_has_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(RequestError, match=r"^device 'cuda:2': there is no such device; here are"):
        find_torch_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_without_a_gpu_the_cpu_alone_is_there(name: str) -> None:
    assert find_torch_device("auto") == torch.device("cpu")
    assert available_devices() == ["cpu"]
    with pytest.raises(RequestError) as error:
        find_torch_device(name)
    assert str(error.value) == f"device {name!r}: PyTorch finds no GPU; here is cpu"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), torch.bfloat16),  # H100
        ((8, 6), torch.bfloat16),  # RTX 3090
        ((7, 5), torch.float16),  # T4
        ((7, 0), torch.float16),  # V100
        ((6, 1), torch.float32),  # GTX 1080, whose fp16 is slower than its fp32
    ],
)
def test_a_gpu_computes_in_what_its_hardware_has(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch counts emulation as support, so it is not asked for bf16 alone."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert find_dtype("auto", torch.device("cuda", 0)) == expected


def test_a_cpu_computes_in_fp32_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert find_dtype("auto", cpu) == torch.float32
    assert find_dtype("bf16", cpu) == torch.bfloat16
    assert find_dtype("fp16", cpu) == torch.float16


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(
        RequestError, match=r"^precision 'bf16' is not there on mps; take fp32 or fp16$"
    ):
        find_dtype("bf16", torch.device("mps"))


def test_a_precision_has_the_name_by_which_it_is_asked_for() -> None:
    for name in ("fp32", "bf16", "fp16"):
        assert precision_name(find_dtype(name, torch.device("cpu"))) == name


def test_a_full_gpu_is_not_said_to_lack_a_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(torch, "zeros", refuse)
    assert find_dtype("bf16", torch.device("cuda", 0)) == torch.bfloat16
