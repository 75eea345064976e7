"""Part d: how the cost of a step grows with trials, tokens and rank."""

from collections.abc import Callable
from typing import Any

from benchmarks.on_gpu.device import free_memory
from benchmarks.on_gpu.lengths import draw_lengths, make_examples
from benchmarks.on_gpu.models import Scale, random_base
from benchmarks.on_gpu.ways import FAILURES, RANK, WithFused

TRIALS = (1, 2, 4, 8, 16)
RANKS = (4, 16, 64, 128)


def measure(scale: Scale, left: Callable[[], float]) -> dict[str, Any]:
    """Measure the 1B model, until the time of the part is used up."""
    size = scale.sizes["1B"]
    ranks = [rank for rank in RANKS if rank <= size.number("hidden_size") // 4]
    base = random_base(size, scale)
    fused = WithFused(base, scale)
    middle = scale.lengths[len(scale.lengths) // 2]
    cases = [("trials", count, middle, RANK) for count in TRIALS]
    cases += [("tokens", 1, length, RANK) for length in scale.lengths]
    cases += [("rank", 1, middle, rank) for rank in ranks]
    rows: list[dict[str, Any]] = []
    for what, trials, length, rank in cases:
        if left() <= 0:
            break
        count = 8 * max(1, scale.batch_tokens // length)
        lengths = [length] * count if what == "tokens" else draw_lengths(count, length)
        examples = make_examples(lengths)
        batch = max(1, round(scale.batch_tokens * count / sum(lengths)))
        row: dict[str, Any] = {"what": what, "trials": trials, "length": length, "rank": rank}
        try:
            steps = min(scale.steps, count // batch)
            timed = fused.run(examples, batch, steps, trials, min(rank, ranks[-1]))
            row["tokens_per_second"] = timed.tokens / timed.seconds
            row["seconds_per_step_and_trial"] = timed.seconds / steps / trials
            row["peak_bytes"], row["resident_bytes"] = timed.peak, timed.resident
        except FAILURES as error:  # out of memory is one
            row["failed"] = str(error)[:200]
        rows.append(row)
        free_memory(scale.device)
    return {"rows": rows, "not_run": len(cases) - len(rows)}
