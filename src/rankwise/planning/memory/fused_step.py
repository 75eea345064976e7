"""Memory of a training step of the fused engine: its own pass, on tensors without numbers.

The pass is that of `rankwise.engine.fused`, forward and backward, on the shortened model. For a GPU
all tensors are on ``meta``. For a CPU they say that they are on a CPU, because the engine takes
other kernels there.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from rankwise.engine.fused.attention import WIDEST, packed_attention
from rankwise.engine.fused.dropout import DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.model import PackedModel, packed_model
from rankwise.engine.fused.packing import current_packing
from rankwise.models import compat
from rankwise.models.auto import trained_heads
from rankwise.models.base_model import BaseModel, compute_in_fp32
from rankwise.models.compat import attention_implementation, quiet_libraries
from rankwise.models.compat_fake import tensors_without_numbers
from rankwise.models.device import DTYPES
from rankwise.models.targets import find_targets
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory import trace
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import CUDA_SCRATCH, HALF_PRECISION, DeviceKernels
from rankwise.planning.memory.quantized import largest_dequantized, quantize
from rankwise.planning.memory.setup import logit_classes
from rankwise.planning.memory.step import StepMemory, refusing, resident_storages
from rankwise.planning.memory.trace import (
    ACTIVATIONS,
    ADAPTER,
    GRADIENTS,
    OPTIMIZER,
    PARTS,
    WEIGHTS,
)
from rankwise.planning.repeated_blocks import Skeleton
from rankwise.tasks.base import Encoded, Objective

SCALING = 2.0
"""Any but 1, so that scaled copies of the factors exist, as in most trials."""
PLANNED_ATTENTION = "rankwise_planned"  # key in transformers' registry of attention functions
NEW_TENSORS = ("aten.empty.", "aten.zeros.", "aten.ones.")
"""Operators that make a tensor from none."""
STATES_8BIT = 2 + 8 / 256
"""Bytes of an entry's two 8-bit states: a number each, and an fp32 scale for each 256 of them."""


@dataclass(frozen=True)
class PackShape:
    """A pack of trials of one rank, and the pass of it that takes the most memory.

    Attributes:
        rank: r.
        trials: trials in the pack.
        in_pass: trials that share the pass.
        examples: examples of each of them in the pass.
        seq_len: tokens of an example.
        checkpointing: whether blocks keep their inputs alone.
        threads: passes that run at the same time, on a CPU.
    """

    rank: int
    trials: int
    in_pass: int
    examples: int
    seq_len: int
    checkpointing: bool
    threads: int = 1


class FusedStep:
    """Traces steps of the fused engine on one base model.

    Args:
        skeleton: the shortened model.
        config: the request.
        kernels: the kernels of the device.
        objective: the loss.
    """

    def __init__(
        self, skeleton: Skeleton, config: PlanConfig, kernels: DeviceKernels, objective: Objective
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.kernels = kernels
        self.on_cpu = kernels.device.is_cpu
        model: Any = skeleton.copy()
        dtype = DTYPES[config.precision]
        endings = (*trained_heads(objective.task_type), *config.modules_to_save)
        in_full = tuple(name for name, _ in model.named_modules() if name.endswith(endings))
        self.in_full = in_full if endings else ()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if config.quantization != "none":
            with quiet_libraries():
                quantize(model, config.quantization, dtype, self.on_cpu, self.in_full)
        compute_in_fp32([model.get_submodule(name) for name in self.in_full])
        targets = find_targets(model, config.targets, self.in_full)
        if self.on_cpu:
            _take_numbers(model)
        self.base = BaseModel(
            model, None, config.model, objective, (), self.in_full, targets, config.seq_len
        )

    def memory(self, shape: PackShape, examples: Encoded | None = None) -> StepMemory:
        """Return the memory of a pack's step.

        Args:
            shape: the pack.
            examples: those of each trial in the pass; default: full length, all tokens supervised.

        Raises:
            RequestError: the engine cannot run such a step.
        """
        trials = [self._trial(shape.rank) for _ in range(shape.trials)]
        batches = [examples or self._examples(shape)] * shape.in_pass
        kind = _CpuRecorder if self.on_cpu else trace.Recorder
        recorder = kind({} if self.on_cpu else CUDA_SCRATCH, logit_classes(self.skeleton))
        for trial in trials:
            for tensor in (trial.flat, trial.gradient):
                recorder.ignore(tensor)
        planned_attention = partial(_planned_attention, self.kernels)
        AttentionInterface.register(PLANNED_ATTENTION, planned_attention)
        with (
            quiet_libraries(),
            self.kernels,
            refusing(self.config.model),
            packed_model(self.base, checkpointing=shape.checkpointing) as model,
            attention_implementation(self.base.model, PLANNED_ATTENTION),
            trace.recording(self.base.model, self.skeleton, {}, recorder),
        ):
            self._run(model, trials, batches, recorder)
        return self._summed(shape, trials[0], recorder.record())

    def _run(
        self,
        model: PackedModel,
        trials: Sequence["_Trial"],
        batches: Sequence[Encoded],
        recorder: trace.Recorder,
    ) -> None:
        """Run one pass of a step, forward and backward."""
        model.begin_step(trials)
        self._count_stacks_of_all_blocks(recorder)
        losses = model.loss_sums(trials[: len(batches)], model.pack(batches))
        recorder.begin_backward()
        # Tensor.backward would leave the mode that chooses kernels.
        torch.autograd.backward([losses.sum()])

    def _count_stacks_of_all_blocks(self, recorder: trace.Recorder) -> None:
        """Give the stacked factors, and their gradients, the size that they have at full depth."""
        sizes = self.base.targets
        whole = sum(sum(size) * self.skeleton.repeats(name) for name, size in sizes.items())
        depth = whole / sum(map(sum, sizes.values()))
        for part, number in zip((ADAPTER, GRADIENTS), recorder.alive(), strict=False):
            recorder.sizes[number] = round(depth * recorder.sizes[number])
            recorder.parts[number] = part

    def _trial(self, rank: int) -> "_Trial":
        """Return a trial whose parameters and gradients are views of flat tensors, in fp32."""
        sizes = self.base.targets
        entries = sum(rank * sum(size) for size in sizes.values())
        flat, gradient = self._empty(entries), self._empty(entries)
        factors: dict[str, LoraFactors] = {}
        start = 0
        for name, widths in sizes.items():
            views: list[torch.Tensor] = []
            for width in widths:
                stop = start + rank * width
                views += [tensor[start:stop].view(rank, width) for tensor in (flat, gradient)]
                start = stop
            a, a_grad, bt, bt_grad = views
            factors[name] = LoraFactors(a, bt, a_grad, bt_grad, SCALING)
        head = {name: copy.deepcopy(self.base.model.get_submodule(name)) for name in self.in_full}
        for module in head.values():
            for parameter in module.requires_grad_().parameters():
                parameter.grad = torch.empty_like(parameter)
        return _Trial(factors, head, flat, gradient)

    def _empty(self, entries: int) -> torch.Tensor:
        tensor = torch.empty(entries, device="meta")
        return _on_cpu(tensor) if self.on_cpu else tensor

    def _examples(self, shape: PackShape) -> Encoded:
        """Return examples of full length; every token is supervised that can be."""
        tokens = [[0] * shape.seq_len] * shape.examples
        ids = tuple(range(shape.examples))
        if self.base.objective.task_type != "CAUSAL_LM":
            return Encoded(ids=ids, input_ids=tokens, labels=(0,) * shape.examples)
        supervised = [list(range(shape.seq_len - 1))] * shape.examples
        return Encoded(ids=ids, input_ids=tokens, labels=tuple(supervised), positions=supervised)

    def _summed(self, shape: PackShape, trial: "_Trial", record: trace.Record) -> StepMemory:
        """Add everything up for the whole model and all trials."""
        device = self.kernels.device
        sizes = self.base.targets.items()
        entries = shape.rank * sum(sum(size) * self.skeleton.repeats(name) for name, size in sizes)
        heads = [each for module in trial.head.values() for each in module.parameters()]
        entries += sum(each.numel() for each in heads)
        states = STATES_8BIT if self.config.optimizer == "adamw-8bit" else 8
        start = np.zeros(len(PARTS), dtype=np.int64)
        for storage in resident_storages(self.base.model, self.skeleton):
            start[WEIGHTS] += device.allocated(storage.size) * storage.repeats
        start[[ADAPTER, GRADIENTS]] = 4 * entries * shape.trials
        start[OPTIMIZER] = round(states * entries) * shape.trials
        start[ACTIVATIONS] = device.workspace_bytes
        peak, _ = trace.peak_and_end(start, record.sections(device.allocation_block))
        peak = start + shape.threads * (peak - start)
        at_peak = {part: int(size) for part, size in zip(PARTS, peak, strict=True)}
        return StepMemory(
            **at_peak,
            context=device.context_bytes,
            peak_allocated=int(peak.sum()),
            peak_eval=0,
            optimizer_paged=0,
            master_weights=0,
            largest_dequantized=largest_dequantized(self.base.model),
            at_peak=at_peak,
        )


@dataclass
class _Trial:
    """A trial as `rankwise.engine.fused.model.PackedTrial` describes it, without numbers."""

    factors: dict[str, LoraFactors]
    head: dict[str, nn.Module]
    flat: torch.Tensor
    gradient: torch.Tensor
    dropout_stream: DropoutStream | None = None


def device_of(device: Device) -> torch.device:
    """Return the PyTorch device whose tensors stand for those of a planned device."""
    return torch.device("cpu" if device.is_cpu else "meta")


class _CpuRecorder(trace.Recorder):
    """Records tensors on a CPU, with numbers and without.

    Indices have numbers, on which shapes depend. New tensors of floats get none.
    """

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and record its outputs."""
        dtype = kwargs.get("dtype") or torch.float32
        if not str(operator).startswith(NEW_TENSORS) or not dtype.is_floating_point:
            return super().run(operator, args, kwargs)
        with tensors_without_numbers():
            result = operator(*args, **kwargs)
        self.add_all(result)
        return result

    def allocated(self, tensor: torch.Tensor) -> int:
        """Record a storage on any device."""
        return self._allocate(tensor.untyped_storage().nbytes(), tensor)


def _planned_attention(
    kernels: DeviceKernels,
    module: nn.Module,
    query: torch.Tensor,  # (1, h, T, d)
    key: torch.Tensor,  # (1, h_kv, T, d)
    value: torch.Tensor,  # (1, h_kv, T, d)
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the fused engine does on the planned device; the sequences have one length."""
    block = current_packing().blocks[0]
    keeps_scores = options.get("softcap") is not None or options.get("s_aux") is not None
    is_half = query.dtype in HALF_PRECISION
    same_width = query.shape[-1] == value.shape[-1] <= WIDEST
    if kernels.device.capability >= 80 and is_half and same_width and not keeps_scores:
        query, key, value = (
            tensor[0].unflatten(1, (block.count, block.longest)).transpose(0, 1)
            for tensor in (query, key, value)
        )  # (n, h, L, d) each
        output = compat.flash_attention(compat.AttentionCall(query, key, value, None, 0.0, True))
        return output.transpose(1, 2).flatten(0, 1)[None], None  # (1, T, h, d)
    with kernels:  # a block that runs again in the backward pass has left this mode
        return packed_attention("blocks", module, query, key, value, attention_mask, **options)


def _take_numbers(model: nn.Module) -> None:
    """Replace all tensors of a model on ``meta`` by tensors on a CPU without numbers."""
    replaced: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if id(tensor) not in replaced:
                on_cpu = _on_cpu(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                replaced[id(tensor)] = (
                    nn.Parameter(on_cpu, requires_grad=False) if is_parameter else on_cpu
                )
            setattr(module, name, replaced[id(tensor)])


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on a CPU without numbers in place of one on ``meta``."""
    with tensors_without_numbers():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
