"""Memory and time of a trial alone, measured by thrown-away steps after its training."""

import statistics
import time
from collections.abc import Sequence

from rankwise.engine.batches import longest_rows
from rankwise.engine.fused.loop import TrainingLoop, synchronize
from rankwise.engine.fused.model import PackedModel
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.models.quantization import resident_tensors

TIMING_STEPS = 9  # of each trial


def peak_memory(loop: TrainingLoop, model: PackedModel, state: TrainingState) -> int:
    """Measure a thrown-away step of a trial on the longest examples, in bytes."""
    longest = longest_rows(loop.examples.lengths, state.config.batch_size)
    loop.base.model.train()

    def step() -> None:
        model.begin_step([state])
        loop.forward_backward(model, [state], [longest])
        model.end_step()
        state.optimizer.step()

    return peak_live_bytes(step, [*resident_tensors(loop.base.model), *state.tensors()])


def seconds_alone(
    loop: TrainingLoop, model: PackedModel, states: Sequence[TrainingState]
) -> list[float]:
    """Return the seconds that each trial would take alone, on all cores.

    The trials take turns at thrown-away steps spread over their training. The median time for a
    token ignores a delayed step.
    """
    shares = [len(state.steps) / state.total_steps for state in states]
    lengths = loop.examples.lengths
    seconds_per_token: list[list[float]] = [[] for _ in states]
    for turn in range(TIMING_STEPS):
        for state, seconds in zip(states, seconds_per_token, strict=True):
            batch = state.batch(state.total_steps * turn // TIMING_STEPS)
            start = time.perf_counter()
            model.begin_step([state])
            (loss,) = loop.forward_backward(model, [state], [batch])
            model.end_step()
            state.update(loss)
            synchronize(model.device)
            tokens = sum(lengths[row] for row in batch)
            seconds.append((time.perf_counter() - start) / tokens)
    tokens = states[0].config.epochs * sum(lengths)
    medians = map(statistics.median, seconds_per_token)
    return [share * tokens * each for share, each in zip(shares, medians, strict=True)]
