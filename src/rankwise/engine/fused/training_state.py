"""State of one trial: its parameters, optimizer, data order and figures while it trains."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rankwise.engine.adapter_init import adapter_state, attach_adapter, json_config
from rankwise.engine.batches import epoch_batches
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.dropout import DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.peak_memory import optimizer_states
from rankwise.engine.schedule import learning_rates, steps_per_epoch, total_steps
from rankwise.engine.trial import Trial, no_evidence
from rankwise.lora.adapter import PEFT_PREFIX, Adapter, factor_pairs
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded


class TrainingState:
    """A trial in training; it shares nothing with another trial.

    All parameters lie in one flat tensor, so clipping and AdamW are one kernel each, however many
    layers there are::

        flat (P,)  [ all A | head's matrices   | all B^T | head's vectors            ]
                     at the learning rate      at loraplus_ratio times that rate

    Attributes:
        flat: all parameters, (P,); its ``grad`` is a tensor to which passes add.
        factors: views of the LoRA factors and their gradients, by layer.
        head: modules trained in full, whose parameters are views too, by name.
        steps: figures of each finished step, see `rankwise.engine.trial.FinishedTrial`.
        evidence: held-out results, empty until the trial is scored.
    """

    def __init__(
        self,
        trial: Trial,
        base: BaseModel,
        saved: Mapping[str, Mapping[str, torch.Tensor]],
        config: TrainingConfig,
        examples: Encoded,
    ) -> None:
        self.trial = trial
        self.config = config
        self.examples = examples
        self.steps: list[dict[str, float]] = []
        self.diverged = False
        self.evidence = no_evidence()
        self.total_steps = total_steps(config, examples)
        self.steps_per_epoch = steps_per_epoch(config, examples)
        self._epoch = -1
        self._epoch_batches: list[list[int]] = []
        initial = self._draw_initial_values(base, saved)
        slow_entries = self._allocate(list(base.targets), initial)
        groups = self._parameter_groups(slow_entries)
        self.optimizer = torch.optim.AdamW(
            groups, trial.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = learning_rates(self.optimizer, config, self.total_steps)

    def _draw_initial_values(
        self, base: BaseModel, saved: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the adapter that PEFT draws from the seed, and keep its config and the head."""
        config = self.config
        model = attach_adapter(
            base, self.trial, saved, init=config.init, lora_dropout=config.lora_dropout
        )
        try:
            self.adapter_config = json_config(model)
            self.head: dict[str, nn.Module] = {}
            for name in base.trained_in_full:
                wrapper: Any = base.model.get_submodule(name)
                self.head[name] = copy.deepcopy(wrapper.modules_to_save["default"])
            return {key: value.detach().clone() for key, value in adapter_state(model).items()}
        finally:
            model.unload()

    def _allocate(self, targets: list[str], initial: Mapping[str, torch.Tensor]) -> int:
        """Lay all parameters out in the flat tensor; return the number of entries before B."""
        parameters: dict[str, nn.Parameter] = {}
        for name, module in self.head.items():
            for key, parameter in module.named_parameters():
                parameters[f"{PEFT_PREFIX}{name}.{key}"] = parameter
        slow = {_key(name, "A"): initial[_key(name, "A")] for name in targets}  # (r, d_in)
        slow.update((key, value.detach()) for key, value in parameters.items() if value.ndim > 1)
        fast = {_key(name, "B"): initial[_key(name, "B")].t() for name in targets}  # (r, d_out)
        fast.update((key, value.detach()) for key, value in parameters.items() if value.ndim <= 1)

        self.flat, views = _flat_copy({**slow, **fast})
        for key, parameter in parameters.items():
            parameter.data, parameter.grad = views[key]  # autograd adds to a gradient that exists
        trial = self.trial
        scaling = trial.lora_alpha / (math.sqrt(trial.rank) if trial.use_rslora else trial.rank)
        self.factors: dict[str, LoraFactors] = {}
        for name in targets:
            (a, a_grad), (bt, bt_grad) = views[_key(name, "A")], views[_key(name, "B")]
            self.factors[name] = LoraFactors(a, bt, a_grad, bt_grad, scaling)
        return sum(value.numel() for value in slow.values())

    def _parameter_groups(self, slow_entries: int) -> list[dict[str, Any]]:
        """Return the optimizer's parameters: one group, or two with their rates for LoRA+."""
        ratio = self.config.loraplus_ratio
        if ratio == 1.0:
            return [{"params": [self.flat]}]
        assert self.flat.grad is not None
        slow, fast = self.flat[:slow_entries], self.flat[slow_entries:]
        slow.grad, fast.grad = self.flat.grad[:slow_entries], self.flat.grad[slow_entries:]
        fast_rate = self.trial.learning_rate * ratio
        return [{"params": [slow]}, {"params": [fast], "lr": fast_rate}]

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.diverged or len(self.steps) == self.total_steps

    @property
    def dropout_stream(self) -> DropoutStream:
        """Where the dropout masks of the next step come from."""
        return DropoutStream(self.trial.seed, len(self.steps))

    def next_batch(self) -> list[int]:
        """Return the rows of the next step."""
        return self.batch(len(self.steps))

    def batch(self, step: int) -> list[int]:
        """Return the rows of a step's examples; the first step is 0."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._epoch_batches = epoch_batches(
                self.examples.lengths, self.config.batch_size, self.trial.seed, epoch
            )
        return self._epoch_batches[step_of_epoch]

    def update(self, loss: float) -> None:
        """Clip the gradients, take an optimizer step, and record the step's figures."""
        grad = self.flat.grad
        assert grad is not None
        norm = torch.linalg.vector_norm(grad)
        # As torch's clip_grad_norm_ does.
        grad.mul_((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        grad.zero_()
        step = len(self.steps) + 1
        epoch = step / self.steps_per_epoch
        figures = {"train_loss": loss, "grad_norm": float(norm), "learning_rate": rate}
        self.steps.append({"step": step, **figures, "epoch": epoch})
        self.diverged = not (math.isfinite(loss) and math.isfinite(float(norm)))

    def adapter(self) -> dict[str, torch.Tensor]:
        """Return a copy of the parameters under PEFT's names."""
        state: dict[str, torch.Tensor] = {}
        for name, factors in self.factors.items():
            state[_key(name, "A")] = factors.a
            state[_key(name, "B")] = factors.bt.t()
        for name, module in self.head.items():
            for key, value in module.state_dict().items():
                state[f"{PEFT_PREFIX}{name}.{key}"] = value
        return {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in state.items()
        }

    def tensors(self) -> list[Any]:
        """Return the tensors kept between steps: parameters, gradients, optimizer states."""
        return [self.flat, self.flat.grad, *optimizer_states(self.optimizer)]


class EvalAdapter:
    """A finished adapter of a base, in the form that packed passes take; it cannot be trained."""

    dropout_stream = None

    def __init__(self, base: BaseModel, adapter: Adapter) -> None:
        device = next(base.model.parameters()).device
        no_grad = torch.empty(0)
        self.factors: dict[str, LoraFactors] = {}
        for pair in factor_pairs(adapter):
            a, bt = pair.a.to(device), pair.b.t().contiguous().to(device)
            self.factors[pair.name] = LoraFactors(a, bt, no_grad, no_grad, pair.scaling)
        self.head: dict[str, nn.Module] = {}
        for name in base.trained_in_full:
            start = f"{PEFT_PREFIX}{name}."
            module = copy.deepcopy(base.model.get_submodule(name))
            state = {key: adapter.tensors[start + key] for key in module.state_dict()}
            module.load_state_dict(state)
            self.head[name] = module


def _key(layer: str, factor: str) -> str:
    """Return PEFT's name of a layer's factor A or B."""
    return f"{PEFT_PREFIX}{layer}.lora_{factor}.weight"


def _flat_copy(
    values: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Copy values end to end into one tensor that has a gradient; return it and views of both."""
    like = next(iter(values.values()))
    total = sum(value.numel() for value in values.values())
    flat = torch.zeros(total, dtype=like.dtype, device=like.device)
    flat.grad = torch.zeros_like(flat)
    views: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    start = 0
    for key, value in values.items():
        stop = start + value.numel()
        view = flat[start:stop].view(value.shape)
        view.copy_(value)
        views[key] = view, flat.grad[start:stop].view(value.shape)
        start = stop
    return flat, views
