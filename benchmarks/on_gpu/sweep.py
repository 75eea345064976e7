"""Part e: a whole sweep of the 1B model, from the command to the decision."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.device import free_memory
from benchmarks.on_gpu.lengths import as_text, draw_lengths, make_examples
from benchmarks.on_gpu.models import Scale, save_model
from benchmarks.on_gpu.ways import RATE

RANKS, SEEDS = (4, 8, 16, 32), 2


def measure(scale: Scale, left: Callable[[], float]) -> dict[str, Any]:
    """Run the command as a process; return its time, the decision, and where the time went."""
    on_gpu = scale.device.type == "cuda"
    length = scale.lengths[len(scale.lengths) // 2]
    examples = make_examples(draw_lengths(700 if on_gpu else 60, length))
    ranks = RANKS if on_gpu else (2, 4)
    with tempfile.TemporaryDirectory(prefix="rankwise-gpu-") as scratch:
        folder = Path(scratch)
        save_model(scale.sizes["1B"], scale, folder / "model")
        free_memory(scale.device)
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in as_text(examples)))
        command = [sys.executable, "-m", "rankwise", "sweep", "--json"]
        command += ["--model", str(folder / "model"), "--data", str(data), "--task", "sft"]
        command += ["--ranks", ",".join(map(str, ranks)), "--seeds", str(SEEDS)]
        command += ["--learning-rate", str(RATE), "--max-length", str(length)]
        command += ["--device", scale.device.type, "--precision", scale.precision]
        command += ["--out", str(folder / "out")]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(60, left()))
        wall = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"the sweep failed: {done.stderr.strip()[-300:]}")
        decision = json.loads(done.stdout)
        task = json.loads((folder / "out" / "sweep.json").read_text())["task"]
        totals = [
            json.loads(path.read_text().splitlines()[-1])
            for path in sorted((folder / "out" / "trials").glob("*/metrics.jsonl"))
        ]
    return {
        "model": scale.sizes["1B"].name,
        "ranks": ranks,
        "seeds": SEEDS,
        "tokens": sum(examples.lengths),
        "train_tokens": sum(examples.lengths) * task["train_examples"] // len(examples),
        "examples": len(examples),
        "trials": len(totals),
        "pack_sizes": sorted({one["pack_size"] for one in totals}),
        "wall_seconds": wall,
        "training_seconds": sum(one["pack_seconds"] / one["pack_size"] for one in totals),
        "scoring_seconds": sum(one["eval_seconds"] for one in totals),
        "verdict": decision["verdict"],
        "rank": decision["recommended"],
        "notes": done.stderr.splitlines()[:12],
    }
