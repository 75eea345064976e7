"""Trials in training as they are kept: for a later process, or while others have the memory."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.optimizer import read_figures
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.trial import Checkpoints, SavedTrial
from rankwise.errors import RankwiseError

ROUNDING = ("attention", "gradient_checkpointing", "micro_batch_tokens")


class Keeper:
    """Keeps trials in training: at intervals for a later process, and in memory for this one.

    Args:
        checkpoints: where they are kept for a later process; None to keep nothing there.
        minutes: the interval.
        note: called once if nothing can be written; training goes on.
        limits: those in force, which memory may have lowered since training began.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        minutes: float,
        note: Callable[[str], None],
        limits: Limits,
    ) -> None:
        self._checkpoints = checkpoints
        self._interval = 60 * minutes
        self._note = note
        self._limits = limits
        self._in_memory: dict[str, SavedTrial] = {}
        self._last: dict[str, float] = {}  # by first trial of a sub-pack

    def begin(self, states: Sequence[TrainingState]) -> None:
        """Let the interval of trials that share passes begin."""
        self._last[states[0].trial.name] = time.monotonic()

    def after_step(self, states: Sequence[TrainingState]) -> None:
        """Keep trials that share passes for a later process, if their interval is over."""
        name = states[0].trial.name
        if self._checkpoints is not None and time.monotonic() - self._last[name] >= self._interval:
            self._write(saved_trials(states, self._limits))
            self._last[name] = time.monotonic()

    def set_aside(self, states: Sequence[TrainingState]) -> None:
        """Keep a pack that is to train in two halves, one after the other."""
        saved = saved_trials(states, self._limits)
        self._in_memory.update((each.name, each) for each in saved)
        middle = (len(saved) + 1) // 2
        # The first half takes the place of the file that holds all of them, so it comes last.
        for half in (saved[middle:], saved[:middle]):
            if half:
                self._write(half)

    def read(self, name: str, config: TrainingConfig) -> SavedTrial | None:
        """Return a trial at the last step that was kept; None if none was with these settings."""
        in_memory, kept = self._in_memory.get(name), None
        if self._checkpoints is not None:
            kept = self._checkpoints.read(name, made_with(config))
        # Of trials set aside in memory, a later step may have been written since.
        if kept is None or (in_memory is not None and _step(in_memory) >= _step(kept)):
            return in_memory
        self._note(f"{name} goes on after step {_step(kept)}, its checkpoint")
        return kept

    def forget(self, name: str) -> None:
        """Forget a finished trial."""
        self._in_memory.pop(name, None)

    def _write(self, saved: Sequence[SavedTrial]) -> None:
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.write(saved)
        except RankwiseError as error:
            self._checkpoints = None
            self._note(f"trials in training are no longer kept, so they cannot go on: {error}")


def made_with(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings of the machine with which a trial's last bits may change."""
    return {name: getattr(config, name) for name in ROUNDING}


def saved_trials(states: Sequence[TrainingState], limits: Limits) -> list[SavedTrial]:
    """Copy trials, between two of their steps, to main memory."""
    read_figures(states)
    return [
        SavedTrial(
            state.trial.name,
            {name: value.to("cpu", copy=True) for name, value in _tensors(state).items()},
            {
                "started": state.started,
                "steps": list(state.steps),
                "diverged": state.diverged,
                "seconds": state.seconds,
                "micro_batch_tokens": limits.micro_batch_tokens,
            },
            made_with(state.config),
        )
        for state in states
    ]


def restore(state: TrainingState, saved: SavedTrial) -> None:
    """Let a new state of the same trial go on from where it was saved."""
    for name, value in _tensors(state).items():
        value.copy_(saved.tensors[name])
    state.started = saved.progress["started"]
    state.steps = list(saved.progress["steps"])
    state.diverged = saved.progress["diverged"]
    state.seconds = saved.progress["seconds"]


def _step(saved: SavedTrial) -> int:
    return int(saved.progress["started"])


def _tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    """Return the tensors that change from step to step; gradients are zero between steps."""
    tensors = [state.numbers, *state.optimizer.tensors()]
    return {str(number): tensor.detach() for number, tensor in enumerate(tensors)}
