"""The machine of a run, its peak, and where the time of a GPU goes."""

import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("rankwise", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton")
GEMM_NAMES = ("gemm", "nvjet", "cutlass", "xmma", "grouped_mm")
ATTENTION_NAMES = ("flash", "fmha", "attention", "cudnn_generated")


def describe_machine() -> dict[str, Any]:
    """Return the card, the driver, the versions, the date and the commit."""
    on_gpu = torch.cuda.is_available()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "card": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        "driver": _first_line(*query) if on_gpu else None,
        "cuda": torch.version.cuda,
        "versions": versions,
        "date": date.today().isoformat(),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
    }


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return (done.stdout.splitlines() or [""])[0] or None


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the speed of large square matrix products, in FLOP/s."""
    width = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start, rounds = time.perf_counter(), 30
    for _ in range(rounds):
        a @ b
    synchronize(device)
    return rounds * 2.0 * width**3 / (time.perf_counter() - start)


def measure_bandwidth(device: torch.device) -> float:
    """Measure how fast memory is copied, bytes read and written in a second."""
    entries = 2**28 if device.type == "cuda" else 2**20
    source = torch.zeros(entries, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize(device)
    start, rounds = time.perf_counter(), 20
    for _ in range(rounds):
        target.copy_(source)
    synchronize(device)
    return rounds * 2.0 * source.nbytes / (time.perf_counter() - start)


def peak_allocated(device: torch.device, run: Callable[[], object]) -> int | None:
    """Run a function; return the largest number of bytes allocated on a GPU, None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def free_memory(device: torch.device) -> None:
    """Give cached memory back, so that one part does not squeeze the next."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def kernel_shares(device: torch.device, run: Callable[[], object]) -> dict[str, float] | None:
    """Run a function under PyTorch's profiler and say where the GPU's time went.

    Returns:
        The share of the clock's time in which kernels ran, the number of kernels, and the shares
        of their time in matrix products and in attention. None on a CPU.
    """
    if device.type != "cuda":
        run()
        return None
    from torch.profiler import ProfilerActivity, profile

    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        start = time.perf_counter()
        run()
        synchronize(device)
        wall = time.perf_counter() - start
    seconds = {"gemm": 0.0, "attention": 0.0, "other": 0.0}
    kernels = 0
    for event in recorded.key_averages():
        name = event.key.lower()
        kind = "other"
        if any(part in name for part in ATTENTION_NAMES):
            kind = "attention"
        elif any(part in name for part in GEMM_NAMES):
            kind = "gemm"
        seconds[kind] += event.self_device_time_total / 1e6
        kernels += event.count
    total = sum(seconds.values()) or float("nan")
    return {
        "busy": total / wall,
        "kernels": kernels,
        "gemm": seconds["gemm"] / total,
        "attention": seconds["attention"] / total,
    }
