"""One trial while it trains: its parameters in one flat tensor, its optimizer, its order, its figures."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from rankwise.engine.adapter_init import adapter_state, json_config, put_on_adapter
from rankwise.engine.batches import epoch_batches
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.linear import Factors
from rankwise.engine.trial import Trial
from rankwise.lora.adapter import PEFT_PREFIX
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded


class Trainee:
    """A trial's own state; nothing in it is shared with another trial.

    All parameters lie in one flat tensor, so that clipping and AdamW are one kernel each however many layers there
    are.

    Args:
        trial: what is asked.
        base: the frozen base, without adapters.
        saved: see `rankwise.engine.adapter_init.saved_modules`.
        recipe: what all trials share.
        examples: to learn from.
    """

    def __init__(
        self,
        trial: Trial,
        base: BaseModel,
        saved: Mapping[str, Mapping[str, torch.Tensor]],
        recipe: TrainingConfig,
        examples: Encoded,
    ) -> None:
        self.trial = trial
        self.recipe = recipe
        self.examples = examples
        model = put_on_adapter(base, trial, saved, init=recipe.init)
        try:
            self.adapter_config = json_config(model)
            initial = {key: value.detach().clone() for key, value in adapter_state(model).items()}
            wrappers: dict[str, Any] = {
                name: base.model.get_submodule(name) for name in base.trained_in_full
            }
            self.head: dict[str, nn.Module] = {
                name: copy.deepcopy(wrapper.modules_to_save["default"])
                for name, wrapper in wrappers.items()
            }
        finally:
            model.unload()
        total = sum(value.numel() for value in initial.values())
        like = next(iter(initial.values()))
        self.flat = torch.zeros(total, dtype=like.dtype, device=like.device)  # (P,)
        self.flat.grad = torch.zeros_like(self.flat)
        self._used = 0
        scaling = trial.lora_alpha / (math.sqrt(trial.rank) if trial.use_rslora else trial.rank)
        parameters = [
            parameter for module in self.head.values() for parameter in module.parameters()
        ]
        a_factors = {
            name: self._take(initial[f"{PEFT_PREFIX}{name}.lora_A.weight"]) for name in base.targets
        }  # (r, d_in)
        for parameter in parameters:
            if parameter.ndim > 1:
                self._move(parameter)
        slow = self._used  # LoRA+ has a rate for what lies before, and another for what lies behind
        self.factors: dict[str, Factors] = {}
        for name, (a, a_grad) in a_factors.items():
            bt, bt_grad = self._take(
                initial[f"{PEFT_PREFIX}{name}.lora_B.weight"].t()
            )  # (r, d_out)
            self.factors[name] = Factors(a, bt, a_grad, bt_grad, scaling)
        for parameter in parameters:
            if parameter.ndim == 1:
                self._move(parameter)
        steps_per_epoch = math.ceil(len(examples) / recipe.batch_size)
        self.total_steps = steps_per_epoch * recipe.epochs
        self.optimizer = torch.optim.AdamW(
            self._groups(slow, recipe.loraplus_ratio),
            trial.learning_rate,
            weight_decay=0.0,
            fused=True,
        )
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, math.ceil(recipe.warmup_share * self.total_steps), self.total_steps
        )
        self.steps: list[dict[str, float]] = []
        self.diverged = False
        self._epoch = -1
        self._epoch_batches: list[list[int]] = []

    def _take(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a value into the next stretch of the flat tensor; return its view there and that of its gradient."""
        assert self.flat.grad is not None
        stretch = slice(self._used, self._used + value.numel())
        self._used = stretch.stop
        view = self.flat[stretch].view(value.shape)
        view.copy_(value)
        return view, self.flat.grad[stretch].view(value.shape)

    def _move(self, parameter: nn.Parameter) -> None:
        """Let a head's parameter live in the flat tensor; autograd adds to a gradient that is there."""
        parameter.data, parameter.grad = self._take(parameter.detach())

    def _groups(self, slow: int, ratio: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: one, or two with their own rates."""
        if ratio == 1.0:
            return [{"params": [self.flat]}]
        assert self.flat.grad is not None
        parts = self.flat[:slow], self.flat[slow:]
        for part, grad in zip(parts, (self.flat.grad[:slow], self.flat.grad[slow:]), strict=True):
            part.grad = grad
        return [
            {"params": [parts[0]]},
            {"params": [parts[1]], "lr": self.trial.learning_rate * ratio},
        ]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.diverged or len(self.steps) == self.total_steps

    def next_batch(self) -> list[int]:
        """Return the rows of the next step's examples."""
        return self.batch(len(self.steps))

    def batch(self, step: int) -> list[int]:
        """Return the rows of a step's examples, the first being step 0."""
        epoch, within = divmod(step, self.total_steps // self.recipe.epochs)
        if epoch != self._epoch:
            self._epoch = epoch
            self._epoch_batches = epoch_batches(
                self.examples.lengths, self.recipe.batch_size, self.trial.seed, epoch
            )
        return self._epoch_batches[within]

    def update(self, loss: float) -> None:
        """Clip, take an optimizer step with the gradients that have gathered, and note the step's figures."""
        grad = self.flat.grad
        assert grad is not None
        norm = torch.linalg.vector_norm(grad)
        grad.mul_(
            (self.recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        )  # as torch's clip_grad_norm_
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        grad.zero_()
        step = len(self.steps) + 1
        self.steps.append(
            {
                "step": step,
                "train_loss": loss,
                "grad_norm": float(norm),
                "learning_rate": rate,
                "epoch": step * self.recipe.epochs / self.total_steps,
            }
        )
        self.diverged = not (math.isfinite(loss) and math.isfinite(float(norm)))

    def adapter(self) -> dict[str, torch.Tensor]:
        """Return the parameters under PEFT's names."""
        state: dict[str, torch.Tensor] = {}
        for name, own in self.factors.items():
            state[f"{PEFT_PREFIX}{name}.lora_A.weight"] = own.a
            state[f"{PEFT_PREFIX}{name}.lora_B.weight"] = own.bt.t()
        for name, module in self.head.items():
            state.update(
                {f"{PEFT_PREFIX}{name}.{key}": value for key, value in module.state_dict().items()}
            )
        return {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in state.items()
        }

    def tensors(self) -> list[Any]:
        """Return what the trial keeps in memory between steps: parameters, gradients, optimizer states."""
        states = [
            v
            for state in self.optimizer.state.values()
            for v in state.values()
            if isinstance(v, torch.Tensor)
        ]
        return [self.flat, self.flat.grad, *states]
