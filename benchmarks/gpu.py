"""Language models on a GPU: parity, speed, memory and a whole sweep, in one command.

    python benchmarks/gpu.py [--parts a,b,c,d,e] [--out FILE] [--tiny]
    python benchmarks/gpu.py --docs
    python benchmarks/gpu.py --print FILE

Parts: (a) losses of the fused and the reference engine over 30 steps; (b) speed of each way to
train; (c) planned and measured memory; (d) how cost grows; (e) one whole sweep of the 1B model.
All take less than 8 minutes on an H100 and need no network. Each part has its own time; results
are written after every part, so that a run that is cut loses nothing. ``--tiny`` runs all parts in
a small way on a CPU. ``--docs`` writes docs/results/gpu.md from the newest results. Set
PYTHONPATH=src where rankwise is not installed.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks.on_gpu import growth, memory, parity, speed, sweep, tables
from benchmarks.on_gpu.device import describe_machine
from benchmarks.on_gpu.models import SIZES, TINY, Scale

ROOT = Path(__file__).parents[1]
Measure = Callable[[Scale, Callable[[], float]], dict[str, Any]]
PARTS: dict[str, tuple[str, Measure, float]] = {
    "a": ("parity", parity.measure, 30),
    "b": ("speed", speed.measure, 190),
    "c": ("memory", memory.measure, 80),
    "d": ("growth", growth.measure, 40),
    "e": ("sweep", sweep.measure, 90),
}
"""Name, function and seconds of each part."""


def scale_of_run(tiny: bool) -> Scale:
    """Return what the parts run on."""
    if tiny:
        return Scale(TINY, torch.device("cpu"), torch.float32, (32, 64), 128, 3)
    device = torch.device("cuda", torch.cuda.current_device())
    return Scale(SIZES, device, torch.bfloat16, (256, 1024, 4096), 4096, 4)


def result_path(machine: dict[str, Any]) -> Path:
    """Return the file that the results of a machine go to by default."""
    card = "-".join(machine["card"].lower().replace("nvidia", "").split())
    return ROOT / "benchmarks" / "results" / f"gpu-{card}-{machine['date']}.json"


def run_parts(names: list[str], scale: Scale, path: Path) -> dict[str, Any]:
    """Run the parts, and write all results after each."""
    results: dict[str, Any] = {"machine": describe_machine(), "parts": {}, "seconds": {}}
    for letter in names:
        name, measure, budget = PARTS[letter]
        start = time.perf_counter()
        stop = start + budget

        def left(stop: float = stop) -> float:
            return stop - time.perf_counter()

        try:
            results["parts"][name] = measure(scale, left)
        except Exception as error:  # a part that fails must not stop the next
            where = traceback.format_exc()[-2000:]
            results["parts"][name] = {"failed": f"{type(error).__name__}: {error}", "where": where}
        results["seconds"][name] = round(time.perf_counter() - start, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"part {letter}, {name}: {results['seconds'][name]} s", file=sys.stderr, flush=True)
    return results


def main() -> int:
    """Run what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--print", type=Path, dest="shown")
    asked = parser.parse_args()
    if asked.docs:
        tables.write_page(ROOT / "benchmarks" / "results", ROOT / "docs" / "results" / "gpu.md")
        return 0
    if asked.shown:
        print(tables.as_markdown(json.loads(asked.shown.read_text())))
        return 0
    names = asked.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        print(f"part {unknown[0]!r} is not known; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if not asked.tiny and not torch.cuda.is_available():
        print("PyTorch finds no NVIDIA GPU; --tiny runs in a small way on a CPU", file=sys.stderr)
        return 2
    path = asked.out or (Path("gpu-tiny.json") if asked.tiny else result_path(describe_machine()))
    results = run_parts(names, scale_of_run(asked.tiny), path)
    print(tables.as_markdown(results))
    print(f"Results: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
