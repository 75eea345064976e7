"""What a sweep would take: the record that a dry run returns."""

import json
from dataclasses import asdict, dataclass

from rankwise.tasks.preview import ShownExample


@dataclass(frozen=True)
class PlannedRank:
    """One rank of a sweep that has not run.

    Attributes:
        memory_bytes: memory of a training step, the base model included; None if unknown.
        train_seconds: estimated time of training one trial; None for the user's own trainer.
        eval_seconds: estimated time of scoring one trial on the held-out examples; None as above.
        first_rates: learning rates of the trials that run first.
    """

    rank: int
    memory_bytes: int | None
    train_seconds: float | None
    eval_seconds: float | None
    first_rates: tuple[float, ...]


@dataclass(frozen=True)
class DryRun:
    """The trials, memory and time that a sweep would take.

    Attributes:
        complete: number of trials that the directory holds already.
        expected: expected number of trials in the whole sweep.
        at_once: number of trials that train together.
        device: where they train, such as ``cpu`` or ``cuda:0``.
        precision: that of the base: fp32, bf16 or fp16.
        micro_batch_tokens: most tokens of a pass; None for whole batches.
        gradient_checkpointing: whether blocks keep their inputs alone.
        ranks: memory and time of each rank.
        room_bytes: memory that may be used; None if the memory of the model is unknown.
        batch: examples and tokens of the batches that the memory is planned for.
        seconds: estimated time of the remaining trials, trained one after another; None for the
            user's own trainer.
        timed_steps: number of steps timed at the smallest and at the largest rank; the ranks
            between them are interpolated.
        tokens_per_second: those that one trial of the largest rank trains on, alone; None for the
            user's own trainer.
        tflops: its useful work in TFLOP/s, see `rankwise.planning.flop`; None for that too.
        is_fused: whether the fused engine trains.
        further: number of trials after the decision (``--diagnose``), among those expected.
        examples: training examples as the model will see them, as many as were asked for; print
            one to see it with the learnt tokens marked.
        commands: command lines of the trials that the user's own trainer runs first.
    """

    strategy: str
    complete: int
    expected: int
    at_once: int
    device: str
    precision: str
    micro_batch_tokens: int | None
    gradient_checkpointing: bool
    ranks: tuple[PlannedRank, ...]
    room_bytes: int | None
    batch: tuple[int, int]
    seconds: float | None
    timed_steps: int
    tokens_per_second: float | None = None
    tflops: float | None = None
    is_fused: bool = True
    further: int = 0
    examples: tuple[ShownExample, ...] = ()
    commands: tuple[str, ...] = ()

    def as_json(self) -> str:
        """Return everything as one JSON document."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)
