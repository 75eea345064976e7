"""Memory of a training step of the fused engine: its own pass, on tensors without numbers.

The pass is that of `rankwise.engine.fused`, forward and backward, on the shortened model. All
tensors are on ``meta``, and the engine takes the kernels of the planned device.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from rankwise.engine.config import AttentionName
from rankwise.engine.fused.attention import packed_attention, varlen_takes
from rankwise.engine.fused.dropout import DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.model import PackedModel, packed_model, unknown_part
from rankwise.engine.fused.packing import current_packing
from rankwise.engine.fused.products import ProductsName
from rankwise.errors import RequestError, reading
from rankwise.models import compat
from rankwise.models.auto import trained_heads
from rankwise.models.base_model import BaseModel, compute_in_fp32
from rankwise.models.compat import attention_implementation, quiet_libraries
from rankwise.models.device import DTYPES, kernels_of
from rankwise.models.targets import find_targets
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory import trace
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.kernels import CUDA_SCRATCH, HALF_PRECISION, DeviceKernels
from rankwise.planning.memory.quantized import largest_dequantized, quantize
from rankwise.planning.memory.setup import logit_classes
from rankwise.planning.memory.step import StepMemory, no_plan, resident_storages
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
        attention: the engine's kernel.

    Raises:
        RequestError: the fused engine does not take the model.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        config: PlanConfig,
        kernels: DeviceKernels,
        objective: Objective,
        attention: AttentionName = "auto",
    ) -> None:
        self.skeleton = skeleton
        self.config = config
        self.kernels = kernels
        self.attention = attention
        self.on_cpu = kernels.device.is_cpu
        model: Any = skeleton.copy().eval()  # the engine trains a base without dropout
        dtype = DTYPES[config.precision]
        endings = (*trained_heads(objective.task_type), *config.modules_to_save)
        self.in_full = tuple(name for name, _ in model.named_modules() if name.endswith(endings))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if config.quantization != "none":
            with quiet_libraries():
                quantize(model, config.quantization, dtype, self.on_cpu, self.in_full)
        compute_in_fp32([model.get_submodule(name) for name in self.in_full])
        targets = find_targets(model, config.targets, self.in_full)
        self._records: dict[PackShape, trace.Record] = {}
        self.base = BaseModel(
            model, None, config.model, objective, (), self.in_full, targets, config.seq_len
        )
        unknown = unknown_part(self.base)
        if unknown is not None:
            raise RequestError(f"the fused engine does not take {config.model!r}: {unknown}")

    def memory(self, shape: PackShape) -> StepMemory:
        """Return the memory of a pack's step on texts of full length, all tokens supervised.

        Raises:
            RequestError: the engine cannot run such a step.
        """
        # Other trials of the pack, and other threads, change no tensor of a pass but the stacks.
        key = replace(shape, trials=shape.in_pass, threads=1)
        if key not in self._records:
            self._records[key] = self._trace(key, self._examples(shape))
        return self._summed(shape, self._records[key])

    def _trace(self, shape: PackShape, examples: Encoded) -> trace.Record:
        """Trace a pass, as if its trials were all of the pack."""
        trials = [self._trial(shape.rank) for _ in range(shape.in_pass)]
        kind = _CpuRecorder if self.on_cpu else trace.Recorder
        recorder = kind({} if self.on_cpu else CUDA_SCRATCH, logit_classes(self.skeleton))
        for trial in trials:
            for tensor in trial.tensors():
                recorder.ignore(tensor)
        AttentionInterface.register(
            PLANNED_ATTENTION, partial(_planned_attention, self.attention, self.kernels)
        )
        products: ProductsName = "loop" if self.on_cpu else "masked"
        dropout = self.config.lora_dropout
        with (
            quiet_libraries(),
            self.kernels,
            reading(no_plan(self.config.model)),
            kernels_of(self.kernels.device.kind),
            packed_model(
                self.base, dropout, products=products, checkpointing=shape.checkpointing
            ) as model,
            attention_implementation(self.base.model, PLANNED_ATTENTION),
            trace.recording(self.base.model, self.skeleton, {}, recorder),
        ):
            self._run(model, trials, [examples] * shape.in_pass, recorder)
        return recorder.record()

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
        losses = model.loss_sums(trials, model.pack(batches))
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
        flat, gradient = (torch.empty(entries, device="meta") for _ in range(2))
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
        return _Trial(factors, head, flat, gradient, DropoutStream(seed=0, step=0))

    def _examples(self, shape: PackShape) -> Encoded:
        """Return examples of full length; every token is supervised that can be."""
        tokens = [[0] * shape.seq_len] * shape.examples
        ids = tuple(range(shape.examples))
        if self.base.objective.task_type != "CAUSAL_LM":
            return Encoded(ids=ids, input_ids=tokens, labels=(0,) * shape.examples)
        supervised = [list(range(shape.seq_len - 1))] * shape.examples
        return Encoded(ids=ids, input_ids=tokens, labels=tuple(supervised), positions=supervised)

    def adapter_entries(self, rank: int) -> int:
        """Return the parameters of an adapter of a rank on the whole model, without a head."""
        sizes = self.base.targets.items()
        return rank * sum(sum(size) * self.skeleton.repeats(name) for name, size in sizes)

    def _summed(self, shape: PackShape, record: trace.Record) -> StepMemory:
        """Add everything up for the whole model and all trials."""
        device = self.kernels.device
        entries = self.adapter_entries(shape.rank)
        for name in self.in_full:
            entries += sum(
                each.numel() for each in self.base.model.get_submodule(name).parameters()
            )
        states = STATES_8BIT if self.config.optimizer == "adamw-8bit" else 8
        start = np.zeros(len(PARTS), dtype=np.int64)
        for storage in resident_storages(self.base.model, self.skeleton):
            start[WEIGHTS] += device.allocated(storage.size) * storage.repeats
        start[[ADAPTER, GRADIENTS]] = 4 * entries * shape.trials
        start[OPTIMIZER] = round(states * entries) * shape.trials
        start[ACTIVATIONS] = device.workspace_bytes
        is_stack = np.isin(record.parts, (ADAPTER, GRADIENTS))  # which holds the whole pack
        stacks = record.sizes * shape.trials // shape.in_pass
        record = replace(record, sizes=np.where(is_stack, stacks, record.sizes))
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
    dropout_stream: DropoutStream

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield what is there before a step: parameters and gradients."""
        yield from (self.flat, self.gradient)
        for module in self.head.values():
            for parameter in module.parameters():
                yield parameter
                if parameter.grad is not None:
                    yield parameter.grad


def device_of(device: Device) -> torch.device:
    """Return a planned device as PyTorch names it."""
    return torch.device(device.kind)


class _CpuRecorder(trace.Recorder):
    """Records the indices as well, which have numbers: shapes depend on them."""

    def allocated(self, tensor: torch.Tensor) -> int:
        """Record a storage, with numbers or without."""
        return self._allocate(tensor.untyped_storage().nbytes(), tensor)


def _planned_attention(
    kernel: AttentionName,
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
    has_varlen = kernel != "blocks" and kernels.device.capability >= 80
    if has_varlen and is_half and varlen_takes(query, key, value) and not keeps_scores:
        query, key, value = (
            tensor[0].unflatten(1, (block.count, block.longest)).transpose(0, 1)
            for tensor in (query, key, value)
        )  # (n, h, L, d) each
        output = compat.flash_attention(compat.AttentionCall(query, key, value, None, 0.0, True))
        return output.transpose(1, 2).flatten(0, 1)[None], None  # (1, T, h, d)
    with kernels:  # a block that runs again in the backward pass has left this mode
        return packed_attention("blocks", module, query, key, value, attention_mask, **options)
