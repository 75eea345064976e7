"""A trainer that trains nothing: it writes a LoRA adapter for a tiny Llama in PEFT's format.

It imports neither torch nor PEFT, so that a trial takes a fraction of a second. ``--do`` says how
it goes wrong.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

WIDTH = 32  # of tests.tiny_models.TINY
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(out: Path, rank: int, alpha: float, seed: int, **changes: object) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    a = random.normal(size=(rank, WIDTH)).astype(np.float32)
    b = 0.01 * random.normal(size=(WIDTH, rank)).astype(np.float32)
    if changes.pop("nan", False):
        a[0, 0] = np.nan
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b},
        out / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj"],
        **changes,
    }
    (out / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    # A test run in the background of a shell ignores Ctrl-C, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int)
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--copy", type=Path, help="adapters to copy, in place of noise")
    parser.add_argument("--do", default="")
    parser.add_argument("--only", type=int, help="the rank that goes wrong")
    given = parser.parse_args()
    print(f"training rank {given.rank} at {given.lr}")
    do = given.do if given.only in (None, given.rank) else ""
    tries = given.out.parent.parent / f"tries-{given.rank}-{given.seed}"
    if do == "fail":
        raise ValueError(f"no such file for rank {given.rank}")
    if do in ("killed", "killed-once"):
        first = not tries.exists()
        tries.touch()
        if first or do == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    if do == "sleep":
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (given.out / "pids").write_text(f"{os.getpid()} {inner.pid}")
        time.sleep(60)
    if do == "phases":
        print("Step 3/4: reading", flush=True)
        time.sleep(0.5)
    if do in ("steps", "phases"):
        sys.stderr.write("\r 25%|==   | 3/12 [00:01<00:03]")
        time.sleep(0.5)
    if do == "remove":
        shutil.rmtree(given.out.parent)
        sys.exit(3)
    if do == "nothing":
        return
    if given.copy is not None:
        shutil.copytree(given.copy / f"r{given.rank}", given.out, dirs_exist_ok=True)
        return
    rank = given.rank + 1 if do == "wrong-rank" else given.rank
    write_adapter(given.out, rank, given.alpha, given.seed, nan=do == "nan")
    print("done")


if __name__ == "__main__":
    main()
