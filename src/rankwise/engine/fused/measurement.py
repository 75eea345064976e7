"""Memory and time of a trial alone, measured by thrown-away steps once for each rank."""

import time
from collections.abc import Mapping, Sequence

from rankwise.engine.batches import longest_rows
from rankwise.engine.fused.loop import TrainingLoop, synchronize
from rankwise.engine.fused.model import PackedModel
from rankwise.engine.fused.optimizer import step_all
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.models.quantization import resident_tensors

TIMING_STEPS = 2  # of one trial of each rank, on the same batch


class AloneCosts:
    """Memory and time of trials, had they trained alone.

    Both are the same for all trials of a rank, so that one of them is measured, by thrown-away
    steps after its training.

    Args:
        loop: runs the steps.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self._peaks: dict[int, int] = {}  # bytes, by rank
        self._paces: dict[int, float] = {}  # seconds per token, by rank

    def peak_memory(self, model: PackedModel, state: TrainingState) -> int:
        """Return the bytes of a trial's step on the longest examples."""
        rank = state.trial.rank
        if rank not in self._peaks:
            self._peaks[rank] = self._measured_peak(model, state)
        return self._peaks[rank]

    def _measured_peak(self, model: PackedModel, state: TrainingState) -> int:
        longest = longest_rows(self.loop.examples.lengths, state.config.batch_size)
        base = self.loop.base.model
        base.train()

        def step() -> None:
            model.begin_step([state])
            losses = self.loop.forward_backward(model, [state], [longest])
            model.end_step()
            step_all([state], losses)

        return peak_live_bytes(step, [*resident_tensors(base), *state.tensors()])

    def seconds(self, model: PackedModel, states: Sequence[TrainingState]) -> list[float]:
        """Return the seconds that each trial would take alone, on all cores."""
        of_new_ranks = {state.trial.rank: state for state in states}
        for rank in self._paces:
            of_new_ranks.pop(rank, None)
        self._paces |= self._measured_paces(model, of_new_ranks)
        tokens = sum(self.loop.examples.lengths)
        epochs = [len(state.steps) / state.steps_per_epoch for state in states]
        paces = [self._paces[state.trial.rank] for state in states]
        return [part * tokens * pace for part, pace in zip(epochs, paces, strict=True)]

    def _measured_paces(
        self, model: PackedModel, states: Mapping[int, TrainingState]
    ) -> dict[int, float]:
        """Return the seconds per token of a trial of each rank.

        The trials take turns at steps on their most usual batch. The fastest of these counts:
        other programs on the machine, and a first step, can only add to the time.
        """
        batches = {rank: self._usual_batch(state) for rank, state in states.items()}
        paces: dict[int, list[float]] = {rank: [] for rank in states}
        for _ in range(TIMING_STEPS):
            for rank, state in states.items():
                start = time.perf_counter()
                model.begin_step([state])
                losses = self.loop.forward_backward(model, [state], [batches[rank]])
                model.end_step()
                step_all([state], losses)
                synchronize(model.device)
                paces[rank].append((time.perf_counter() - start) / self._tokens(batches[rank]))
        return {rank: min(seconds) for rank, seconds in paces.items()}

    def _usual_batch(self, state: TrainingState) -> list[int]:
        """Return the rows of the batch of a trial's first epoch nearest to the mean of tokens."""
        batches = [
            state.batch(step) for step in range(min(state.steps_per_epoch, state.total_steps))
        ]
        mean = sum(map(self._tokens, batches)) / len(batches)
        return min(batches, key=lambda rows: abs(self._tokens(rows) - mean))

    def _tokens(self, rows: Sequence[int]) -> int:
        return sum(self.loop.examples.lengths[row] for row in rows)
