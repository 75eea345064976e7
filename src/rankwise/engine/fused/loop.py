"""The training loop: the trials of a sub-pack go through the base together, step by step."""

import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from rankwise.engine.fused.model import PackedModel
from rankwise.engine.fused.optimizer import scaled, step_all
from rankwise.engine.fused.training_state import TrainingState
from rankwise.models.base_model import BaseModel
from rankwise.models.quantization import mixes_rows
from rankwise.tasks.base import Encoded


class TrainingLoop:
    """Trains trials on one frozen base.

    Args:
        base: the frozen base.
        examples: the training examples.
        on_step: called with a trial's state after each of its steps, from any thread.
    """

    def __init__(
        self, base: BaseModel, examples: Encoded, on_step: Callable[[TrainingState], None]
    ) -> None:
        self.base = base
        self.examples = examples
        self.on_step = on_step
        self._pass_tokens = 0 if mixes_rows(base.model) else max_pass_tokens(base.device)

    def train(
        self, model: PackedModel, states: Sequence[TrainingState], stop: threading.Event
    ) -> None:
        """Train trials step by step, in as few passes a step as the tokens allow."""
        while not stop.is_set():
            active = [state for state in states if not state.finished]
            if not active:
                break
            batches = [state.next_batch() for state in active]
            tokens = [sum(self.examples.lengths[row] for row in batch) for batch in batches]
            model.begin_step(active)
            losses: list[torch.Tensor] = []
            for part in _passes(tokens, self._pass_tokens):
                losses.append(self.forward_backward(model, active[part], batches[part]))
            model.end_step()
            step_all(active, torch.cat(losses))
            for state in active:
                self.on_step(state)
        synchronize(model.device)

    def forward_backward(
        self, model: PackedModel, states: Sequence[TrainingState], batches: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Run K trials on their batches in one pass, and add to their gradients.

        Returns:
            Their mean losses, (K,), on the device.
        """
        parts = [self.examples.take(batch) for batch in batches]
        counts = torch.tensor([part.loss_count for part in parts], device=model.device)
        losses = model.loss_sums(states, parts) / counts  # (K,)
        scaled(states, losses).sum().backward()
        return losses.detach()


def max_pass_tokens(device: torch.device) -> int:
    """Return the most tokens of several trials that go through the base in one pass."""
    # A long pass leaves a CPU's caches (see benchmarks/README.md); others are faster with more.
    return 1024 if device.type == "cpu" else 16384


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock on the host tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _passes(tokens: Sequence[int], most: int) -> Iterator[slice]:
    """Split trials into passes of neighbours with at most this many tokens, or of one trial."""
    start = 0
    for stop in range(1, len(tokens) + 1):
        if stop == len(tokens) or sum(tokens[start : stop + 1]) > most:
            yield slice(start, stop)
            start = stop
