"""Part b: tokens per second, seconds per trial and useful work of each way to train."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.on_gpu.device import free_memory, kernel_shares, measure_bandwidth, measure_peak
from benchmarks.on_gpu.goals import TUTORIAL
from benchmarks.on_gpu.lengths import draw_lengths, make_examples
from benchmarks.on_gpu.models import Scale, Size, flop_of, random_base
from benchmarks.on_gpu.ways import FAILURES, RANK, Timed, WithFused, WithTrainer
from rankwise.engine.fused.model import unsupported_reason
from rankwise.tasks.base import Encoded

GROUPED = f"{TUTORIAL}, length groups"
PACKS = {"fused, alone": 1, "fused, pack of 4": 4, "fused, pack of 8": 8}
TRIAL_EXAMPLES = 1000
REAL, EQUAL = "real", "equal"


def workloads(scale: Scale) -> Iterator[tuple[str, int, str]]:
    """Yield size, length and kind of lengths of each comparison, the goals' own first."""
    middle = scale.lengths[len(scale.lengths) // 2]
    for name in scale.sizes:
        yield name, middle, REAL
        if name in ("8B", "1B"):
            yield name, middle, EQUAL
    for length in scale.lengths:
        if length != middle:
            for name in scale.sizes:
                yield name, length, EQUAL


def measure(scale: Scale, left: Callable[[], float]) -> dict[str, Any]:
    """Measure the ways of each workload, until the time of the part is used up."""
    peak = measure_peak(scale.device, scale.dtype)
    found: dict[str, Any] = {
        "peak_flop_per_second": peak,
        "bytes_per_second": measure_bandwidth(scale.device),
        "rank": RANK,
        "rows": [],
        "not_run": [],
    }
    by_size: dict[str, list[tuple[int, str]]] = {}
    for name, length, kind in workloads(scale):
        by_size.setdefault(name, []).append((length, kind))
    # Each model is built once; the sizes of the goals come first.
    order = sorted(by_size, key=("8B", "1B", "135M", "MoE").index)
    for place, name in enumerate(order):
        share = left() / (len(order) - place)
        _measure_size(scale, name, by_size[name], left, left() - share, found)
        free_memory(scale.device)
    return found


def _measure_size(
    scale: Scale,
    name: str,
    cases: list[tuple[int, str]],
    left: Callable[[], float],
    reserve: float,
    found: dict[str, Any],
) -> None:
    """Measure one model; stop when only the time that is reserved for the others is left."""
    size = scale.sizes[name]
    for length, kind in cases:
        if left() <= reserve:
            found["not_run"].append(f"{name} at {length} tokens, {kind} lengths: no time was left")
            continue
        for row in _measure_case(scale, size, length, kind):
            found["rows"].append({"size": name, "length": length, "lengths": kind, **row})


def _measure_case(scale: Scale, size: Size, length: int, kind: str) -> Iterator[dict[str, Any]]:
    count = 16 * max(1, scale.batch_tokens // min(length, 512))
    lengths = draw_lengths(count, length) if kind == REAL else [length] * count
    examples = make_examples(lengths)
    batch = max(1, round(scale.batch_tokens / (sum(lengths) / count)))
    steps = min(scale.steps, count // batch)
    rows: dict[str, Timed | str] = {}
    entries = 0
    grouped = (False, True) if kind == REAL else (False,)
    for group in grouped:
        try:
            way = WithTrainer(size, scale, group)
            entries = way.trainable()
            rows[GROUPED if group else TUTORIAL] = way.run(examples, batch, steps)
            del way
        except FAILURES as error:  # out of memory is one
            rows[GROUPED if group else TUTORIAL] = f"failed: {str(error)[:200]}"
        free_memory(scale.device)
    base = random_base(size, scale)
    obstacle = unsupported_reason(base, examples)
    profile = None
    for name, trials in PACKS.items():
        if obstacle is not None:
            rows[name] = f"not run: {obstacle}"
            continue
        try:
            fused = WithFused(base, scale)
            rows[name] = fused.run(examples, batch, steps, trials)
            if trials == max(PACKS.values()):
                profile = kernel_shares(scale.device, fused.again)
        except FAILURES as error:
            rows[name] = f"failed: {str(error)[:200]}"
        free_memory(scale.device)
    base_bytes = sum(p.nbytes for p in base.model.parameters())
    del base
    free_memory(scale.device)
    for name, timed in rows.items():
        row: dict[str, Any] = {"way": name, "trials": PACKS.get(name, 1), "batch": batch}
        if isinstance(timed, str):
            yield {**row, "failed": timed}
            continue
        if trials_profile := (profile if name == "fused, pack of 8" else None):
            row["kernels"] = trials_profile
        yield {**row, **_figures(size, examples, timed, entries), "base_bytes": base_bytes}


def _figures(size: Size, examples: Encoded, timed: Timed, entries: int) -> dict[str, Any]:
    """Return the figures of a run: per token of the examples, without padding."""
    lengths = examples.lengths
    learnt = sum(len(tokens) for tokens in examples.labels)
    work = flop_of(size, lengths, learnt, entries)
    rate = timed.tokens / timed.seconds
    tokens = sum(lengths)
    return {
        "tokens_per_second": rate,
        "seconds_per_trial": TRIAL_EXAMPLES * tokens / len(lengths) / rate,
        "flop_per_second": sum(work.values()) / tokens * rate,
        "work_shares": {name: each / sum(work.values()) for name, each in work.items()},
        "padding": timed.padding,
        "peak_bytes": timed.peak,
        "resident_bytes": timed.resident,
    }
