"""State of one trial: its parameters, optimizer, data order and figures while it trains."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rankwise.engine.adapter_init import adapter_state, attach_adapter, json_config
from rankwise.engine.batches import epoch_batches
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.dropout import DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.optimizer import (
    BLOCK,
    OPTIMIZERS,
    FlatOptimizer,
    Part,
    first_numbers,
)
from rankwise.engine.schedule import rate_factors, steps_per_epoch, trial_steps
from rankwise.engine.trial import Trial, no_evidence
from rankwise.lora.adapter import PEFT_PREFIX, Adapter, factor_pairs
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded


class TrainingState:
    """A trial in training; it shares nothing with another trial.

    All parameters lie in one flat tensor in fp32, so clipping and AdamW are one kernel each,
    however many layers there are::

        flat (P,)  [ all A | head's matrices   | all B^T | head's vectors            ]
                     at the learning rate      at loraplus_ratio times that rate
                     with weight decay                   without weight decay

    `rankwise.engine.fused.optimizer.step_all` takes its steps. On a GPU, ``steps`` and ``diverged``
    lag behind by some steps.

    Attributes:
        flat: all parameters, (P,); its ``grad`` is a tensor to which passes add.
        factors: views of the LoRA factors and their gradients, by layer.
        head: modules trained in full, whose parameters are views too, by name.
        optimizer: AdamW's averages, over the flat tensor.
        started: number of steps taken.
        steps: figures of each step that was read, see `rankwise.engine.trial.FinishedTrial`.
        unread: figures of the steps after those, on the device: loss, norm, 0.0 if diverged.
        diverged: whether a loss or a gradient was not finite; nothing changed from that step on.
        numbers: this trial's share of `rankwise.engine.fused.optimizer.Numbers`, (3,).
        scales_losses: whether losses are scaled before the backward pass, as fp16 needs it.
        seconds: how long its pack has trained.
        evidence: held-out results, empty until the trial is scored.
    """

    def __init__(
        self,
        trial: Trial,
        base: BaseModel,
        saved: Mapping[str, Mapping[str, torch.Tensor]],
        config: TrainingConfig,
        examples: Encoded,
        start: Adapter | None = None,
    ) -> None:
        self.trial = trial
        self.config = config
        self.examples = examples
        self.started = 0
        self.steps: list[dict[str, float]] = []
        self.unread: list[torch.Tensor] = []
        self.diverged = False
        self.seconds = 0.0
        self.evidence = no_evidence()
        self.total_steps = trial_steps(config, trial, examples)
        self.steps_per_epoch = steps_per_epoch(config, examples)
        self._rate_factor_of = rate_factors(config, self.total_steps)
        self._epoch = -1
        self._epoch_batches: list[list[int]] = []
        initial = self._initial_values(base, saved, start)
        parts = self._allocate(list(base.targets), initial)
        self.optimizer: FlatOptimizer = OPTIMIZERS[config.optimizer](self.flat, parts)
        self.scales_losses = base.compute_dtype == torch.float16
        self.numbers = first_numbers(self.scales_losses, self.flat.device)

    def _initial_values(
        self,
        base: BaseModel,
        saved: Mapping[str, Mapping[str, torch.Tensor]],
        start: Adapter | None,
    ) -> dict[str, torch.Tensor]:
        """Return the adapter as PEFT attaches it, and keep its config, scalings and the head."""
        config = self.config
        model = attach_adapter(
            base, self.trial, saved, init=config.init, lora_dropout=config.lora_dropout, start=start
        )
        try:
            self.adapter_config = json_config(model)
            layers: dict[str, Any] = {n: base.model.get_submodule(n) for n in base.targets}
            self._scalings = {name: layer.scaling["default"] for name, layer in layers.items()}
            self.head: dict[str, nn.Module] = {}
            for name in base.trained_in_full:
                wrapper: Any = base.model.get_submodule(name)
                self.head[name] = copy.deepcopy(wrapper.modules_to_save["default"])
            return {key: value.detach().clone() for key, value in adapter_state(model).items()}
        finally:
            model.unload()

    def _allocate(self, targets: list[str], initial: Mapping[str, torch.Tensor]) -> list[Part]:
        """Lay all parameters out in the flat tensor; return its parts."""
        parameters: dict[str, nn.Parameter] = {}
        for name, module in self.head.items():
            for key, parameter in module.named_parameters():
                parameters[f"{PEFT_PREFIX}{name}.{key}"] = parameter
        slow = {_key(name, "A"): initial[_key(name, "A")] for name in targets}  # (r, d_in)
        slow.update((key, value.detach()) for key, value in parameters.items() if value.ndim > 1)
        fast = {_key(name, "B"): initial[_key(name, "B")].t() for name in targets}  # (r, d_out)
        vectors = {key: value.detach() for key, value in parameters.items() if value.ndim <= 1}

        align = BLOCK if self.config.optimizer == "adamw-8bit" else 1
        self.flat, views, ends = _flat_copy([slow, fast, vectors], align)
        for key, parameter in parameters.items():
            parameter.data, parameter.grad = views[key]  # autograd adds to a gradient that exists
        self.factors: dict[str, LoraFactors] = {}
        for name in targets:
            (a, a_grad), (bt, bt_grad) = views[_key(name, "A")], views[_key(name, "B")]
            self.factors[name] = LoraFactors(a, bt, a_grad, bt_grad, self._scalings[name])
        return self._parts(ends)

    def _parts(self, ends: Sequence[int]) -> list[Part]:
        """Return the flat tensor's parts, from the ends of matrices and A, of B, and of vectors."""
        rate, decay = self.trial.learning_rate, self.config.weight_decay
        fast_rate = rate * self.config.loraplus_ratio
        parts: list[Part] = []
        start = 0
        for end, settings in zip(
            ends, [(rate, decay), (fast_rate, decay), (fast_rate, 0.0)], strict=True
        ):
            last = parts[-1] if parts else None
            if last is not None and (last.learning_rate, last.weight_decay) == settings:
                parts[-1] = Part(last.start, end, *settings)
            elif end > start:
                parts.append(Part(start, end, *settings))
            start = end
        return parts

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.diverged or self.is_last_step

    @property
    def is_last_step(self) -> bool:
        """Whether the last step was taken."""
        return self.started >= self.total_steps

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient of all parameters, (P,)."""
        assert self.flat.grad is not None
        return self.flat.grad

    def rate_factor(self) -> float:
        """Return the next step's learning rate, as a share of the trial's."""
        return self._rate_factor_of(self.started)

    @property
    def dropout_stream(self) -> DropoutStream:
        """Where the dropout masks of the next step come from."""
        return DropoutStream(self.trial.seed, self.started)

    def batch(self, step: int) -> list[int]:
        """Return the rows of a step's examples; the first step is 0."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._epoch_batches = epoch_batches(
                self.examples.lengths, self.config.batch_size, self.trial.seed, epoch
            )
        return self._epoch_batches[step_of_epoch]

    def add_unread(self, row: torch.Tensor) -> None:
        """Count a step, whose figures stay on the device, (3,); steps after the last have none."""
        if not self.is_last_step:
            self.unread.append(row)
        self.started += 1

    def record(self, rows: Sequence[Sequence[float]]) -> None:
        """Add the figures of all unread steps, up to the one at which the trial diverged."""
        first = self.started - len(self.unread)
        self.unread = []
        for step, (loss, norm, alive) in enumerate(rows, first):
            if self.diverged:
                break
            rate = self.trial.learning_rate * self._rate_factor_of(step)
            figures = {"train_loss": loss, "grad_norm": norm, "learning_rate": rate}
            epochs, part = divmod(step + 1, self.steps_per_epoch)
            epoch = epochs + part / self.steps_per_epoch
            self.steps.append({"step": step + 1, **figures, "epoch": epoch})
            self.diverged = alive == 0.0

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

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors kept between steps: parameters, gradients, optimizer states."""
        return [self.gradient, *self.optimizer.tensors()]


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
    groups: Sequence[Mapping[str, torch.Tensor]], align: int
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]], list[int]]:
    """Copy groups of tensors end to end into one tensor that has a gradient.

    Args:
        groups: values by key; a key is in one group.
        align: each tensor starts at a multiple of it; entries in between are 0, and stay 0.

    Returns:
        The flat tensor, views of it and of its gradient by key, and the end of each group.
    """
    starts: dict[str, int] = {}
    ends = []
    total = 0
    for group in groups:
        for key, value in group.items():
            starts[key] = total
            total += -(-value.numel() // align) * align
        ends.append(total)
    like = next(iter(groups[0].values()))
    flat = torch.zeros(total, dtype=like.dtype, device=like.device)
    flat.grad = torch.zeros_like(flat)
    views: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for group in groups:
        for key, value in group.items():
            entries = slice(starts[key], starts[key] + value.numel())
            view = flat[entries].view(value.shape)
            view.copy_(value)
            views[key] = view, flat.grad[entries].view(value.shape)
    return flat, views, ends
