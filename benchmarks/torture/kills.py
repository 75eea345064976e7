"""Sweeps that are killed at random moments: does each end as if it had never been stopped?

A case is a kind of sweep: each strategy, `--extend`, `--budget`, a trainer's command. A round
starts it in a new directory, stops it at a random moment by a random signal, and goes on with the
same command until one run gets through. Then trials, evidence, adapters and decision are compared,
bit for bit, with those of a run that was never stopped. Only times and memory may differ.

    python benchmarks/torture/kills.py --kills 300 --minutes 30

It resumes: rounds that are complete are kept in `--results`, and `--print` shows them.
"""

import argparse
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the packages benchmarks and tests

from benchmarks import results_file

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/kills.json"
MEASURED = {
    "train_seconds",
    "pack_seconds",
    "eval_seconds",
    "peak_memory_bytes",
    "step_seconds",
    "sha256",
}  # by the clock, and the digest of what was
SIGNALS = {
    signal.SIGKILL: 5,
    signal.SIGTERM: 2,
    signal.SIGINT: 2,
    signal.SIGHUP: 1,
}  # weights of the draw
EXIT_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
START_SECONDS = 0.3  # Python's own start, in which no handler of ours is there yet
CLASSIFY = ["--ranks", "2,4,8", "--learning-rate", "5e-3,1e-2", "--margin", "0.5", "--no-prior"]
FAKE_TRAINER = (
    f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tests/trainers/fake_trainer.py'))} "
    "--rank {rank} --alpha {lora_alpha} --lr {learning_rate} --seed {seed} --out {out}"
)


@dataclass(frozen=True)
class Case:
    """A kind of sweep: the options of its commands, one after the other in one directory."""

    commands: tuple[tuple[str, ...], ...]
    task: str = "reviews"


CASES = {
    **{
        strategy: Case(((*CLASSIFY, "--strategy", strategy),))
        for strategy in ("grid", "once", "ends", "escalate", "race")
    },
    "checkpoints": Case(((*CLASSIFY, "--epochs", "3", "--checkpoint-minutes", "1e-6"),)),
    "extend": Case(((*CLASSIFY, "--seeds", "1"), (*CLASSIFY, "--seeds", "2", "--extend"))),
    "budget": Case(((*CLASSIFY, "--budget", "1e-9"), (*CLASSIFY, "--budget", "1000"))),
    "trainer": Case(
        (("--ranks", "2,4,8", "--learning-rate", "1e-3", "--trainer", FAKE_TRAINER),), "dialogues"
    ),
}


@dataclass
class Round:
    """What happened in a round.

    Attributes:
        signals: how often each signal stopped the sweep.
        faults: what did not hold: a traceback, a wrong exit code, files that differ.
    """

    signals: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def make_inputs(directory: Path) -> None:
    """Write tiny random models and made-up data, once."""
    from tests.conftest import make_reviews
    from tests.tiny_models import save_lm_inputs, save_tiny

    if (directory / "complete").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    save_tiny("bert", directory / "reviews-model")
    make_reviews(120).to_csv(directory / "reviews.csv", index=False)
    save_lm_inputs(directory, 60)
    (directory / "model").rename(directory / "dialogues-model")
    (directory / "complete").touch()


def words(case: Case, number: int, inputs: Path, out: Path) -> list[str]:
    """Return a command of a case."""
    data = next(inputs.glob(f"{case.task}.*"))
    place = ["--model", str(inputs / f"{case.task}-model"), "--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "rankwise", "sweep", *place, *case.commands[number]]


def outcome(out: Path) -> dict[str, str]:
    """Return a digest of each file of a sweep that does not depend on the clock."""
    digests = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "decision.json" or path.name == "config.json":
            content = json.dumps(without_clock(json.loads(path.read_text())), sort_keys=True)
            digests[name] = hashlib.sha256(content.encode()).hexdigest()
        elif path.name == "metrics.jsonl":
            rows = [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
            digests[name] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        elif path.suffix in (".parquet", ".safetensors") or "export" in path.parts:
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name.startswith((".partial", ".running")):
            digests[name] = "left over"
    return digests


def without_clock(value: Any) -> Any:
    """Return a JSON value without what a clock measured."""
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name not in MEASURED}
        return {name: without_clock(item) for name, item in kept.items()}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def run_whole(case: Case, inputs: Path, out: Path) -> list[float]:
    """Run a case without a stop; return the seconds of its commands."""
    seconds = []
    for number in range(len(case.commands)):
        start = time.monotonic()
        done = subprocess.run(words(case, number, inputs, out), capture_output=True, text=True)
        seconds.append(time.monotonic() - start)
        if done.returncode:
            raise SystemExit(f"{shlex.join(words(case, number, inputs, out))}\n{done.stderr}")
    return seconds


def run_stopped(command: list[str], after: float, number: signal.Signals) -> tuple[bool, list[str]]:
    """Run a command and stop it; return whether it got through, and what did not hold."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=attend_to_signals,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    errors = process.communicate(timeout=600)[1]
    code = process.returncode
    if code == 0:
        return True, []
    faults = ["a traceback"] if "Traceback" in errors else []
    if code != EXIT_CODES[number]:
        faults.append(f"exit code {code} after {number.name}: {errors[-200:]}")
    return False, faults


def attend_to_signals() -> None:
    """Undo that a shell's background job ignores Ctrl-C, and so would all that it starts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_round(name: str, round_number: int, place: Path, seconds: list[float]) -> Round:
    """Run one round of a case."""
    case, draw = CASES[name], random.Random(f"{name} {round_number}")
    out, result, signals = place / "killed", Round(), Counter[str]()
    shutil.rmtree(out, ignore_errors=True)
    for number, whole in enumerate(seconds):
        command = words(case, number, place.parent / "inputs", out)
        through = False
        while not through:
            after = draw.uniform(START_SECONDS, whole)
            (kind,) = draw.choices(list(SIGNALS), weights=list(SIGNALS.values()))
            through, faults = run_stopped(command, after, kind)
            result.faults += faults
            signals[kind.name] += not through
    was, now = outcome(place / "whole"), outcome(out)
    changed = [file for file in sorted({**was, **now}) if was.get(file) != now.get(file)]
    result.faults += [f"{file} differs" for file in changed]
    result.signals = dict(signals)
    return result


def run(options: argparse.Namespace) -> None:
    """Run rounds until there were enough kills, or the minutes are over."""
    deadline = time.monotonic() + 60 * options.minutes
    done = results_file.earlier_tasks(options.results)
    make_inputs(options.out / "inputs")
    rounds = 0
    while time.monotonic() < deadline and kills(done) < options.kills:
        for name, case in CASES.items():
            place = options.out / name
            key = f"{name} {rounds}"
            if key in done or time.monotonic() > deadline or kills(done) >= options.kills:
                continue
            noted = place / "seconds.json"
            if not noted.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                seconds = run_whole(case, options.out / "inputs", place / "whole")
                noted.write_text(json.dumps(seconds))
            result = run_round(name, rounds, place, json.loads(noted.read_text()))
            done[key] = asdict(result)
            results_file.write_results({"tasks": done}, options.results)
            print(f"{key}: {result.signals} {result.faults or 'the same'}", flush=True)
        rounds += 1


def kills(done: Mapping[str, Any]) -> int:
    """Return how many runs were stopped."""
    return sum(sum(each["signals"].values()) for each in done.values())


def show(done: Mapping[str, Any]) -> bool:
    """Print a line for each case; return whether everything held."""
    for name in CASES:
        rounds = [each for key, each in done.items() if key.rpartition(" ")[0] == name]
        counts = sum((Counter(each["signals"]) for each in rounds), Counter[str]())
        wrong = [fault for each in rounds for fault in each["faults"]]
        print(f"{name:12} {len(rounds)} rounds, {counts.total()} stops {dict(counts)}: ", end="")
        print("; ".join(wrong) or "0 different")
    print(f"{kills(done)} stops")
    return not any(each["faults"] for each in done.values())


def main() -> None:
    """Run the rounds that are left, then print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    results_file.add_options(parser, "kills-out", RESULTS)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.printed is None:
        run(options)
    if not show(results_file.earlier_tasks(options.printed or options.results)):
        sys.exit(1)


if __name__ == "__main__":
    main()
