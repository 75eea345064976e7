"""Single flipped bits in every kind of file: is each refused, or without effect?

A finished sweep and a model of a few tensors are made. Then one bit after the other is flipped:

- in a file of a trial, `sweep.json` or `untrained.json`: what a decision and a hand-over take from
  the directory must be as before, or be refused;
- in a checkpoint: the trial goes on from an older one, or begins anew;
- in a file of a model or of data: the sweep is another one, unless the tensors are the same;
- in the cache of digests: the digests are as before;
- in the decision, the report, `best/` and `export/`, one bit in each file at once: the sweep's own
  command makes all of them anew, bit for bit.

    python benchmarks/torture/flips.py --flips 2000 --minutes 60

It resumes: flips that are done are kept in `--results`, and `--print` shows them.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the packages benchmarks and tests

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tests.factories import flipped_bit, read_all
from tests.trainers.fake_trainer import write_adapter

import rankwise
from benchmarks import results_file
from rankwise.engine.trial import SavedTrial
from rankwise.errors import RankwiseError
from rankwise.models import fingerprint
from rankwise.store.checkpoints import CheckpointDirectory
from rankwise.store.conclusion import CONCLUSION
from rankwise.store.digests import sealed_bytes
from rankwise.store.records import Environment
from rankwise.tasks.readers import file_fingerprint
from rankwise.trainers.function import FunctionTrial

RESULTS = Path(__file__).parents[1] / "results/flips.json"
REFUSED, NO_EFFECT, MADE_ANEW = "refused", "without effect", "made anew"
TRIAL = "r4-lr0.001-seed0"
HERE = Environment(versions={}, platform="Linux", cpu_count=2, threads=1, device="cpu")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        files: the files in which one bit each is flipped at once.
        outcome: what a flip came to; raises AssertionError if it changed something in silence.
    """

    files: Sequence[Path]
    outcome: Callable[[], str]


@contextmanager
def flipped(files: Sequence[Path], draw: random.Random) -> Iterator[None]:
    """Flip a random bit of each file inside the ``with`` block."""
    contents = {path: path.read_bytes() for path in files}
    for path, content in contents.items():
        path.write_bytes(flipped_bit(content, draw.randrange(8 * len(content))))
    try:
        yield
    finally:
        for path, content in contents.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def make_sweep(place: Path) -> Callable[[], None]:
    """Run a sweep of a function that leaves adapters and losses; return how to run it again."""

    def train(trial: FunctionTrial) -> Path:
        left = place / "left" / trial.name
        shutil.rmtree(left, ignore_errors=True)
        write_adapter(left, trial.rank, trial.lora_alpha, trial.seed)
        draw = random.Random(trial.name)
        losses = [1 / trial.rank + 0.01 * draw.random() for _ in range(40)]
        rows = pd.DataFrame({"example_id": range(40), "loss": losses})
        rows.to_json(left / "rankwise_evidence.jsonl", orient="records", lines=True)
        return left

    def run() -> None:
        rankwise.sweep(
            train=train, ranks=(2, 4), learning_rate=1e-3, margin=0.01, out=place / "out"
        )

    shutil.rmtree(place / "out", ignore_errors=True)
    run()
    untrained = {"example_id": list(range(40)), "loss": [2.0 + 0.1 * row for row in range(40)]}
    (place / "out" / "untrained.json").write_bytes(sealed_bytes(untrained))
    return run


def reading(out: Path) -> Callable[[], str]:
    """Return the outcome of reading a sweep directory."""
    before = read_all(out)

    def outcome() -> str:
        try:
            now = read_all(out)
        except RankwiseError:
            return REFUSED
        assert now == before
        return NO_EFFECT

    return outcome


def running(run: Callable[[], None], out: Path) -> Callable[[], str]:
    """Return the outcome of the sweep's own command, which makes anew what is derived."""
    run()  # a second time: times of trials stay, and so does all else
    before = {path: path.read_bytes() for path in conclusion_files(out)}

    def outcome() -> str:
        run()
        assert {path: path.read_bytes() for path in conclusion_files(out)} == before
        return MADE_ANEW

    return outcome


def conclusion_files(out: Path) -> list[Path]:
    """Return the files that a sweep derives from its trials."""
    paths = [path for name in CONCLUSION for path in (out / name, *(out / name).rglob("*"))]
    return sorted(path for path in paths if path.is_file())


def resuming(place: Path) -> Kind:
    """Return the checkpoint of a trial in training, with an older one beside it."""

    def saved(step: int) -> SavedTrial:
        tensors = {"a": torch.arange(60.0) * step, "step": torch.tensor(float(step))}
        return SavedTrial(TRIAL, tensors, {"started": step, "losses": [0.5] * step}, {})

    def outcome() -> str:
        # The flipped file is removed once it is found to be damaged.
        found = CheckpointDirectory(place, HERE).read(TRIAL, {})
        if found is None:
            return REFUSED
        expected = saved(int(found.progress["started"]))
        assert found.progress == expected.progress
        assert all(torch.equal(found.tensors[name], x) for name, x in expected.tensors.items())
        return NO_EFFECT

    shutil.rmtree(place, ignore_errors=True)
    CheckpointDirectory(place, HERE).write([saved(20)])
    return Kind([place / f"{TRIAL}.safetensors"], outcome)


def another_model(model: Path, file: str) -> Kind:
    """Return a file of a model: a flip makes it another model, or it holds the same tensors."""
    before, weights = fingerprint.model_digests(str(model)), load_file(model / "model.safetensors")

    def outcome() -> str:
        if fingerprint.model_digests(str(model)) != before:
            return REFUSED
        now = load_file(model / "model.safetensors")
        assert file == "model.safetensors" and weights.keys() == now.keys()
        assert all(torch.equal(weights[name], now[name]) for name in weights)
        return NO_EFFECT

    return Kind([model / file], outcome)


def cached(model: Path) -> Kind:
    """Return the cached digests of a model's weights."""
    before = fingerprint.model_digests(str(model))
    (entry,) = fingerprint.cache_directory().iterdir()

    def outcome() -> str:
        assert fingerprint.model_digests(str(model)) == before
        return NO_EFFECT

    return Kind([entry], outcome)


def make_kinds(place: Path) -> dict[str, Kind]:
    """Make a sweep and a model below a directory, and return the kinds of their files."""
    out, model, data = place / "out", place / "model", place / "data.csv"
    run = make_sweep(place)
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    for name in ("config.json", "tokenizer.model", "chat_template.jinja", "modeling_own.py"):
        (model / name).write_text(f"content of {name}, " * 9)
    weights = {"a": torch.arange(200.0), "b": torch.ones(9, 4, dtype=torch.bfloat16)}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    data.write_text("".join(f"text {row},{row % 2}\n" for row in range(50)))
    fingerprint.CACHED_FROM, fingerprint.SETTLED_SECONDS = 0, -1.0
    fingerprint.cache_directory = lambda: place / "cache"
    shutil.rmtree(place / "cache", ignore_errors=True)
    known, is_read = file_fingerprint(data), reading(out)
    trial = out / "trials" / TRIAL
    files = [
        "SHA256SUMS",
        *(f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")),
    ]
    files += ["config.json", "metrics.jsonl", "evidence.parquet"]
    kinds = {name: Kind([trial / name], is_read) for name in files}
    kinds |= {name: Kind([out / name], is_read) for name in ("sweep.json", "untrained.json")}
    kinds["checkpoint"] = resuming(place / ".unfinished")
    for path in sorted(model.iterdir()):
        kinds[f"model/{path.name}"] = another_model(model, path.name)
    kinds["cached digests"] = cached(model)
    kinds["data"] = Kind([data], lambda: REFUSED if file_fingerprint(data) != known else "")
    is_made_anew = running(run, out)
    kinds["decision, report, best and export"] = Kind(conclusion_files(out), is_made_anew)
    return kinds


def run_flips(options: argparse.Namespace) -> None:
    """Flip bits until there were enough in each kind of file, or the minutes are over."""
    deadline = time.monotonic() + 60 * options.minutes
    done: dict[str, Any] = results_file.earlier_tasks(options.results)
    for name, kind in make_kinds(options.out.absolute()).items():
        tally = Counter(done.get(name, {}))
        while tally.total() < options.flips and time.monotonic() < deadline:
            draw = random.Random(f"{name} {tally.total()}")
            with flipped(kind.files, draw):
                try:
                    tally[kind.outcome()] += 1
                except Exception as error:  # whatever is neither of these is what is looked for
                    tally[f"{type(error).__name__}: {error}"[:200]] += 1
            if tally.total() % 100 == 0:
                done[name] = dict(tally)
                results_file.write_results({"tasks": done}, options.results)
        done[name] = dict(tally)
        results_file.write_results({"tasks": done}, options.results)
        print(f"{name}: {dict(tally)}", flush=True)


def show(done: Mapping[str, Mapping[str, int]]) -> bool:
    """Print a line for each kind of file; return whether no flip changed anything in silence."""
    allowed = {REFUSED, NO_EFFECT, MADE_ANEW}
    for name, tally in done.items():
        counts = ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))
        print(f"{name:36} {counts}")
    wrong = sum(n for tally in done.values() for what, n in tally.items() if what not in allowed)
    print(f"{sum(sum(tally.values()) for tally in done.values())} flips, {wrong} other outcomes")
    return not wrong


def main() -> None:
    """Do the flips that are left, then print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    results_file.add_options(parser, "flips-out", RESULTS)
    parser.add_argument("--flips", type=int, default=2000, help="in each kind of file")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    if options.printed is None:
        run_flips(options)
    if not show(results_file.earlier_tasks(options.printed or options.results)):
        sys.exit(1)


if __name__ == "__main__":
    main()
