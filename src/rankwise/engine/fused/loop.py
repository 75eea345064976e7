"""The training loop: the trials of a sub-pack go through the base together, step by step."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from rankwise.engine.fused.ahead import made_ahead
from rankwise.engine.fused.model import PackedBatches, PackedModel
from rankwise.engine.fused.optimizer import scaled, step_all
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.packing import to_device
from rankwise.engine.fused.passes import step_passes
from rankwise.engine.fused.training_state import TrainingState
from rankwise.models.base_model import BaseModel
from rankwise.models.out_of_memory import attempt
from rankwise.models.quantization import mixes_rows
from rankwise.tasks.base import Encoded


@dataclass(frozen=True)
class PreparedPass:
    """A pass whose examples lie ready on the device."""

    trials: slice
    batches: PackedBatches  # a micro-batch of each of K trials
    counts: torch.Tensor  # number of losses in each trial's whole batch, (K,)
    tokens: int


class TrainingLoop:
    """Trains trials on one frozen base.

    Args:
        base: the frozen base.
        examples: the training examples.
        limits: its micro-batches may become shorter at any time.
        after_step: called with a sub-pack after each of its steps, from any thread.
    """

    def __init__(
        self,
        base: BaseModel,
        examples: Encoded,
        limits: Limits,
        after_step: Callable[[Sequence[TrainingState]], None] = lambda states: None,
    ) -> None:
        self.base = base
        self.examples = examples
        self.limits = limits
        self.after_step = after_step
        self._pass_tokens = 0 if mixes_rows(base.model) else max_pass_tokens(base.device)

    def train(
        self, model: PackedModel, states: Sequence[TrainingState], stop: threading.Event
    ) -> None:
        """Train trials step by step, in as few passes a step as the tokens allow.

        Raises:
            OutOfMemory: a pass or the update did not fit.
        """
        start = time.perf_counter()
        before = [state.seconds for state in states]
        while not stop.is_set() and not all(state.finished for state in states):
            active = [state for state in states if not state.finished]
            steps = range(min(state.total_steps - state.started for state in active))
            first = [state.started for state in active]
            with closing(made_ahead(partial(self._passes, model, active, first), steps)) as ahead:
                for passes in ahead:
                    attempt(partial(model.begin_step, active))
                    losses = self._run(model, active, passes)
                    attempt(model.end_step)
                    attempt(partial(step_all, active, losses), intact=False)
                    for state, seconds in zip(states, before, strict=True):
                        state.seconds = seconds + time.perf_counter() - start
                    self.after_step(states)
                    # The passes that lie ready are those of all trials in `active`.
                    if stop.is_set() or any(state.finished for state in active):
                        break
        synchronize(model.device)
        for state, seconds in zip(states, before, strict=True):
            state.seconds = seconds + time.perf_counter() - start

    def forward_backward(
        self, model: PackedModel, states: Sequence[TrainingState], batches: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Run K trials on their batches, and add to their gradients, between the step's ends.

        Returns:
            Their mean losses, (K,), on the device.
        """
        return self._run(model, states, self._prepared(model, batches))

    def _passes(
        self,
        model: PackedModel,
        states: Sequence[TrainingState],
        first: Sequence[int],
        step: int,
    ) -> list[PreparedPass]:
        """Prepare the passes of trials so many steps after their first."""
        pairs = zip(states, first, strict=True)
        batches = [state.batch(number + step) for state, number in pairs]
        with on_gpu(model.device):  # a thread starts on the first one
            return attempt(partial(self._prepared, model, batches))

    def _prepared(self, model: PackedModel, batches: Sequence[Sequence[int]]) -> list[PreparedPass]:
        """Lay batches out in passes, and bring these to the device."""
        counts = [self.examples.take(batch).loss_count for batch in batches]
        passes = []
        for each in step_passes(
            self.examples.lengths, batches, self._pass_tokens, self.limits.micro_batch_tokens
        ):
            parts = [self.examples.take(rows) for rows in each.rows]
            losses = to_device(torch.tensor(counts[each.trials]), model.device)
            passes.append(PreparedPass(each.trials, model.pack(parts), losses, each.tokens))
        return passes

    def _run(
        self, model: PackedModel, states: Sequence[TrainingState], passes: Sequence[PreparedPass]
    ) -> torch.Tensor:
        """Run all passes of a step; return the trials' mean losses, (K,)."""
        means = states[0].flat.new_zeros(len(states))  # fp32, whatever the base
        for each in passes:
            work = partial(_add_gradients, model, states[each.trials], each)
            means[each.trials] += attempt(work, tokens=each.tokens)
        return means


def _add_gradients(
    model: PackedModel, states: Sequence[TrainingState], each: PreparedPass
) -> torch.Tensor:
    """Run a pass; return its share of each trial's mean loss, (K,)."""
    shares = model.loss_sums(states, each.batches) / each.counts
    scaled(states, shares).sum().backward()
    return shares.detach()


def max_pass_tokens(device: torch.device) -> int:
    """Return the most tokens of several trials that go through the base in one pass."""
    # A long pass leaves a CPU's caches (see benchmarks/README.md); others are faster with more.
    return 1024 if device.type == "cpu" else 16384


def on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """Let a thread use a GPU that may not be the first; do nothing for another device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock on the host tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
