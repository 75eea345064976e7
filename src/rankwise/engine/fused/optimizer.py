"""Optimizer steps of several trials at once, without a wait for the device.

A step of K trials takes their losses and gradients, and leaves on the device whatever it finds out:
norms, which trials have diverged, and the loss scales of fp16. `TrainingState.numbers` holds a
trial's share of it. The host reads these figures every few steps, in one copy for all trials. Until
then a trial that has diverged still runs, but nothing of it changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from rankwise.engine.fused.training_state import TrainingState

BETAS = (0.9, 0.999)  # as torch.optim.AdamW and transformers' Trainer have them
EPSILON = 1e-8
BLOCK = 256  # entries that share a scale in bitsandbytes' 8-bit states

FIRST_SCALE = 2.0**16  # of fp16 losses; this and the next two are those of torch.amp.GradScaler
GROWTH_INTERVAL = 2000  # steps without overflow after which a scale doubles
BACKOFF = 0.5
SMALLEST_SCALE = 1.0  # below it even unscaled gradients overflow, at every step

STEPS_BETWEEN_READINGS = {"cpu": 1}  # by kind of device; a CPU has nothing to wait for
MOST_UNREAD = 20  # steps between readings on other devices


class Numbers(NamedTuple):
    """What the device alone knows of K trials, (K,) each."""

    alive: torch.Tensor  # 1.0, or 0.0 once the trial has diverged
    scale: torch.Tensor  # by which its losses are multiplied; 1.0 except in fp16
    calm_steps: torch.Tensor  # steps since the scale changed


def first_numbers(scales_losses: bool, device: torch.device) -> torch.Tensor:
    """Return the `Numbers` of one trial before its first step, (3,)."""
    return torch.tensor([1.0, FIRST_SCALE if scales_losses else 1.0, 0.0], device=device)


@dataclass(frozen=True)
class Part:
    """A part of a trial's flat tensor with one learning rate and one weight decay."""

    start: int
    stop: int
    learning_rate: float
    weight_decay: float


class FlatOptimizer(Protocol):
    """The optimizer of one trial, whose parameters lie in one flat tensor."""

    def step(self, number: int, factor: float, frozen: torch.Tensor) -> None:
        """Take a step at the parts' learning rates times a factor.

        Args:
            number: of the step; the first is 1.
            factor: the schedule's.
            frozen: 1.0 if nothing may change, or 0.0; a scalar on the device.
        """

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that are kept between steps."""


class AdamW:
    """PyTorch's AdamW, by its fused kernel."""

    def __init__(self, flat: torch.Tensor, parts: Sequence[Part]) -> None:
        self.flat = flat
        self.parts = parts
        self.averages = torch.zeros_like(flat)
        self.squares = torch.zeros_like(flat)
        self.taken = torch.zeros(len(parts), dtype=torch.float32, device=flat.device)

    def step(self, number: int, factor: float, frozen: torch.Tensor) -> None:
        """Take a step; the kernel itself leaves a frozen trial alone, except on an Apple GPU."""
        if self.flat.device.type == "mps":
            with _undone_if(frozen, self.tensors()):
                self._step(factor, torch.zeros_like(frozen))
        else:
            self._step(factor, frozen)

    def _step(self, factor: float, frozen: torch.Tensor) -> None:
        assert self.flat.grad is not None
        for part, taken in zip(self.parts, self.taken.unbind(), strict=True):
            entries = slice(part.start, part.stop)
            adamw(
                [self.flat[entries]],
                [self.flat.grad[entries]],
                [self.averages[entries]],
                [self.squares[entries]],
                max_exp_avg_sqs=[],
                state_steps=[taken],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=part.learning_rate * factor,
                weight_decay=part.weight_decay,
                eps=EPSILON,
                maximize=False,
                found_inf=frozen,
            )

    def tensors(self) -> list[torch.Tensor]:
        """Return parameters, both averages, and the number of steps of each part."""
        return [self.flat, self.averages, self.squares, self.taken]


class AdamW8bit:
    """AdamW of bitsandbytes with averages in 8 bits (Dettmers et al. 2022, "8-bit optimizers").

    Each 256 entries share a scale. So every parameter starts at a multiple of 256 in the flat
    tensor: its states are those it would have alone. The kernel takes the number of steps from the
    host, and so counts those too that fp16 skips.
    """

    def __init__(self, flat: torch.Tensor, parts: Sequence[Part]) -> None:
        from bitsandbytes.functional import create_dynamic_map

        self.flat = flat
        self.parts = parts
        self.signed = create_dynamic_map(signed=True).to(flat.device)
        self.unsigned = create_dynamic_map(signed=False).to(flat.device)
        blocks = -(-len(flat) // BLOCK)
        self.averages, self.squares = (torch.zeros_like(flat, dtype=torch.uint8) for _ in range(2))
        self.average_scales, self.square_scales = (
            torch.zeros(blocks, dtype=torch.float32, device=flat.device) for _ in range(2)
        )

    def step(self, number: int, factor: float, frozen: torch.Tensor) -> None:
        """Take a step, and undo it for a frozen trial."""
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        assert self.flat.grad is not None
        with _undone_if(frozen, self.tensors()):
            for part in self.parts:
                entries = slice(part.start, part.stop)
                blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
                optimizer_update_8bit_blockwise(
                    "adam",
                    self.flat.grad[entries],
                    self.flat[entries],
                    self.averages[entries],
                    self.squares[entries],
                    *BETAS,
                    beta3=0.0,
                    alpha=0.0,
                    eps=EPSILON,
                    step=number,
                    lr=part.learning_rate * factor,
                    qmap1=self.signed,
                    qmap2=self.unsigned,
                    absmax1=self.average_scales[blocks],
                    absmax2=self.square_scales[blocks],
                    weight_decay=part.weight_decay,
                )

    def tensors(self) -> list[torch.Tensor]:
        """Return parameters, and both averages with their scales."""
        scales = [self.average_scales, self.square_scales]
        return [self.flat, self.averages, self.squares, *scales]


OPTIMIZERS: dict[str, type[AdamW] | type[AdamW8bit]] = {
    "adamw": AdamW,
    "adamw-8bit": AdamW8bit,
}


@contextmanager
def _undone_if(frozen: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Undo what the ``with`` block does to tensors if a scalar on the device is not 0."""
    before = [tensor.clone() for tensor in tensors]
    yield
    is_frozen = frozen != 0
    for tensor, old in zip(tensors, before, strict=True):
        torch.where(is_frozen, old, tensor, out=tensor)


def scaled(states: Sequence["TrainingState"], losses: torch.Tensor) -> torch.Tensor:
    """Return K losses to differentiate, (K,): in fp16 each is multiplied by its trial's scale.

    Small gradients would be rounded to 0 in fp16, and scaled ones are not (Micikevicius et al.
    2018, "Mixed precision training"). `step_all` divides by the scales.
    """
    if not states[0].scales_losses:
        return losses
    return losses * _numbers(states).scale


def step_all(states: Sequence["TrainingState"], losses: torch.Tensor) -> None:
    """Clip the gradients of K trials, take an optimizer step of each, and zero the gradients.

    The figures stay on the device for some steps (`read_figures`).

    Args:
        states: trials of one sweep whose gradients are complete, from `scaled` losses.
        losses: their mean losses over the batch, not scaled, (K,), on the device.
    """
    grads = [state.gradient for state in states]
    numbers = _numbers(states)
    norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]) / numbers.scale
    is_finite = losses.isfinite() & norms.isfinite()  # (K,)
    after = _numbers_after(numbers, is_finite, states[0].scales_losses)
    frozen = 1.0 - numbers.alive * is_finite
    # As torch's clip_grad_norm_ does.
    clipping = (states[0].config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0) / numbers.scale
    rows = torch.stack([losses.detach(), norms, after.alive], 1)  # (K, 3)
    by_trial = zip(states, grads, clipping.unbind(), frozen.unbind(), strict=True)
    for state, grad, factor, is_frozen in by_trial:
        grad.mul_(factor)
        state.optimizer.step(state.started + 1, state.rate_factor(), is_frozen)
        grad.zero_()
    rows_after = torch.stack(after, 1).unbind()
    for state, row, row_after in zip(states, rows.unbind(), rows_after, strict=True):
        state.numbers = row_after
        state.add_unread(row)
    interval = STEPS_BETWEEN_READINGS.get(norms.device.type, MOST_UNREAD)
    if any(len(state.unread) >= interval or state.is_last_step for state in states):
        read_figures(states)


def _numbers(states: Sequence["TrainingState"]) -> Numbers:
    return Numbers(*torch.stack([state.numbers for state in states]).unbind(1))


def _numbers_after(numbers: Numbers, is_finite: torch.Tensor, scales_losses: bool) -> Numbers:
    """Return the trials' numbers after a step.

    A loss or gradient that is not finite ends a trial. In fp16 the scale may be the reason: then
    the step is skipped and the scale halved, by the rule of torch.amp.GradScaler, and a trial ends
    when its scale falls to nothing.
    """
    alive, scale, calm_steps = numbers
    if not scales_losses:
        return Numbers(alive * is_finite, scale, calm_steps)
    calm = torch.where(is_finite, calm_steps + 1.0, 0.0)
    grows = calm == GROWTH_INTERVAL
    new_scale = torch.where(grows, 2.0 * scale, torch.where(is_finite, scale, BACKOFF * scale))
    return Numbers(alive * (new_scale >= SMALLEST_SCALE), new_scale, torch.where(grows, 0.0, calm))


def read_figures(states: Sequence["TrainingState"]) -> None:
    """Copy the figures that are still on the device to the trials' steps, in one copy."""
    rows = [row for state in states for row in state.unread]
    if not rows:
        return
    figures = iter(torch.stack(rows).tolist())
    for state in states:
        state.record([next(figures) for _ in state.unread])
