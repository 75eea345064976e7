"""The record of a dry run."""

import json

from rankwise.planning.planned_sweep import DryRun, PlannedRank


def test_json_holds_every_field_and_each_rank() -> None:
    rank = PlannedRank(
        rank=4, memory_bytes=None, train_seconds=1.5, eval_seconds=0.5, first_rates=(1e-3,)
    )
    planned = DryRun(
        strategy="grid",
        complete=1,
        expected=8,
        at_once=2,
        device="cpu",
        precision="fp32",
        micro_batch_tokens=None,
        gradient_checkpointing=False,
        ranks=(rank,),
        room_bytes=None,
        batch=(8, 64),
        seconds=12.0,
        timed_steps=4,
        tokens_per_second=4200.0,
        tflops=0.0525,
    )
    values = json.loads(planned.as_json())
    assert values["expected"] == 8 and values["batch"] == [8, 64]
    assert values["ranks"] == [
        {
            "rank": 4,
            "memory_bytes": None,
            "train_seconds": 1.5,
            "eval_seconds": 0.5,
            "first_rates": [1e-3],
        }
    ]
