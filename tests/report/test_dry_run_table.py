"""A dry run in the terminal."""

import io
from dataclasses import replace

from rich.console import Console

from rankwise.planning.planned_sweep import DryRun, PlannedRank
from rankwise.report.dry_run_table import print_dry_run
from rankwise.tasks.preview import Piece, ShownExample

PLANNED = DryRun(
    strategy="grid",
    complete=2,
    expected=6,
    at_once=3,
    device="cuda:0",
    precision="bf16",
    micro_batch_tokens=None,
    gradient_checkpointing=False,
    ranks=(
        PlannedRank(
            rank=4, memory_bytes=3 * 2**20, train_seconds=30, eval_seconds=2, first_rates=(1e-3,)
        ),
        PlannedRank(rank=8, memory_bytes=None, train_seconds=240, eval_seconds=2, first_rates=()),
    ),
    room_bytes=2**30,
    batch=(8, 128),
    seconds=600,
    timed_steps=4,
    tokens_per_second=4200.0,
    tflops=0.0525,
)


def printed(planned: DryRun) -> str:
    out = io.StringIO()
    print_dry_run(planned, Console(file=out, width=120))
    return " ".join(out.getvalue().split())


def test_each_rank_has_its_memory_time_and_learning_rates() -> None:
    text = printed(PLANNED)
    assert "│ 4 │ 3.0 MiB │ 30.0 s │ 2.0 s │ 0.001 │" in text
    assert "│ 8 │ unknown │ 4.0 min │ 2.0 s │ - │" in text


def test_the_summary_counts_the_trials_and_the_time_that_are_left() -> None:
    text = printed(PLANNED)
    assert "Trials: about 6, of which 2 are complete." in text
    assert "Time: about 10.0 min for the remaining 4" in text
    assert "timed steps each at ranks 4 and 8." in text
    assert "Speed: 4,200 tokens per second at rank 8, 0.0525 TFLOP/s of useful work" in text
    assert "rankwise plan --engine fused --tflops 0.0525" in text
    other = printed(replace(PLANNED, is_fused=False))
    assert "0.0525 TFLOP/s of useful work. Memory" in other
    assert "1.0 GiB may be used." in text
    assert text.endswith("Nothing was written.")


def test_one_line_says_what_is_in_force() -> None:
    start = "Training: on cuda:0 in bf16,"
    whole = f"{start} whole batches, gradient checkpointing off, up to 3 trials at once."
    assert whole in printed(PLANNED)
    short = replace(PLANNED, at_once=1, micro_batch_tokens=512, gradient_checkpointing=True)
    passes = "micro-batches of at most 512 tokens, gradient checkpointing on, one trial at once."
    assert f"{start} {passes}" in printed(short)


def test_memory_is_left_out_where_the_model_cannot_be_planned() -> None:
    assert "Memory:" not in printed(replace(PLANNED, room_bytes=None))


def test_learnt_tokens_are_marked_without_colours_too() -> None:
    pieces = (Piece("<|im_start|>[bold]q ", False), Piece("a<|im_end|>", True))
    example = ShownExample(row=3, tokens=7, learnt_tokens=2, pieces=pieces)
    text = printed(replace(PLANNED, examples=(example,)))
    assert "between « and » is learnt" in text
    assert "row 3: 7 tokens, 2 learnt <|im_start|>[bold]q «a<|im_end|>»" in text
