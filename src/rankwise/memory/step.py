"""A training step's memory, part by part: the model as PEFT sets it up, traced, and multiplied to its whole depth."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rankwise.errors import RequestError
from rankwise.lora.count import Skeleton, put_on_adapter
from rankwise.lora.meta_model import first_sentence, quiet_libraries
from rankwise.memory.devices import Device
from rankwise.memory.kernels import CUDA_SCRATCH, DeviceKernels
from rankwise.memory.optimizers import optimizer_memory
from rankwise.memory.quantized import QuantizedLinear, QuantizedLora, largest_dequantized, quantize
from rankwise.memory.trace import ACTIVATIONS, BLOCK, GRADIENTS, PARTS, highest, recording

if TYPE_CHECKING:
    from rankwise.plan_config import PlanConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINED_HEADS = ("classifier", "score")  # PEFT trains modules of these names for classification


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step. The first six are the parts at its highest moment; they add up to `peak_allocated`.

    Attributes:
        weights: the frozen base: parameters, buffers, quantisation scales.
        adapter: trainable parameters: adapter and modules trained in full.
        gradients: of those, as far as they are there at the highest moment.
        optimizer: its states; during its own step, its scratch too.
        activations: whatever else the step allocates, with the scratch of kernels and of cuBLAS.
        logits: logits, their copies and gradients, and the loss.
        context: the driver's, outside PyTorch's allocator.
        peak_allocated: what ``torch.cuda.max_memory_allocated`` shows.
        peak_eval: the same while evaluating between training steps.
        optimizer_paged: states in unified memory; no part of the peak.
        master_weights: 0: what trains is in fp32 or has no copy in fp32.
        largest_dequantized: the largest weight that is dequantised for a moment, within `activations` when the peak
            is at that moment.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    context: int
    peak_allocated: int
    peak_eval: int
    optimizer_paged: int
    master_weights: int
    largest_dequantized: int

    @property
    def needed(self) -> int:
        """What a device must have free: the higher of both peaks, and the context."""
        return max(self.peak_allocated, self.peak_eval) + self.context

    def as_dict(self) -> dict[str, int]:
        """Return the figures by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def step_memory(
    skeleton: Skeleton, config: "PlanConfig", rank: int, device: Device, kernels_seen: set[str] | None = None
) -> StepMemory:
    """Trace a training step and an evaluation step of the cut model, and put them together for the whole one.

    The step is ``output = model(**batch); output.loss.backward(); optimizer.step()``, the second or a later one, so
    that optimizer states are there and gradients are not; ``output`` lives until its end. Gradient checkpointing is
    the non-reentrant kind. There is no autocast.

    Args:
        skeleton: the cut model, in the precision of the request.
        config: batch, length, quantisation and the rest.
        rank: r.
        device: decides kernels, rounding and scratch.
        kernels_seen: takes the names of the attention kernels.

    Raises:
        RequestError: the model cannot run such a step.
    """
    on_cpu = device.capability == 0
    block = 1 if on_cpu else BLOCK
    model = _training_model(skeleton, config, rank, on_cpu)
    inputs = batch(skeleton, config)
    resident = _resident(model, skeleton, block)
    shapes = [tuple(p.shape) for name, p in _each(model, skeleton) if p.requires_grad]
    optimizer = optimizer_memory(config.optimizer, shapes, on_cpu=on_cpu, block=block)
    start = np.array([resident[0], resident[1], 0, optimizer.states, device.workspace_bytes, 0], dtype=np.int64)
    start[ACTIVATIONS] += sum(-(-tensor.nbytes // block) * block for tensor in inputs.values())
    kernels = DeviceKernels(device, config.attention)
    try:
        with quiet_libraries(), kernels:
            peak = _training_peak(model, skeleton, inputs, start, optimizer.scratch, on_cpu, block)
            peak_eval = _evaluation_peak(model, skeleton, inputs, start, on_cpu, block)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"model {skeleton.meta.name!r} cannot run this step: {first_sentence(error)}") from error
    if kernels_seen is not None:
        kernels_seen |= kernels.kernels
    parts = dict(zip(PARTS, (int(value) for value in peak), strict=True))
    return StepMemory(
        **parts,
        context=device.context_bytes,
        peak_allocated=int(peak.sum()),
        peak_eval=int(peak_eval.sum()),
        optimizer_paged=optimizer.paged,
        master_weights=0,
        largest_dequantized=largest_dequantized(model),
    )


def _training_model(skeleton: Skeleton, config: "PlanConfig", rank: int, on_cpu: bool) -> Any:
    """Set the model up as a QLoRA script would: quantise, prepare for training, put the adapter on."""
    model, task = skeleton.copy(), skeleton.meta.task_type
    with quiet_libraries():
        if config.quantization != "none":
            from peft import prepare_model_for_kbit_training

            heads = TRAINED_HEADS if task in ("SEQ_CLS", "TOKEN_CLS") else ()
            keep = (*config.modules_to_save, *heads)
            quantize(model, config.quantization, DTYPES[config.precision], on_cpu, keep)
            prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        peft_model = put_on_adapter(model, config, rank, task, {QuantizedLinear: QuantizedLora})
        if config.gradient_checkpointing:
            try:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
            except ValueError as error:
                raise RequestError(f"gradient_checkpointing: {first_sentence(error)}") from None
            if hasattr(model, "enable_input_require_grads") and "IMAGE" not in task:
                model.enable_input_require_grads()  # type: ignore[operator]
    return peft_model.train()


def batch(skeleton: Skeleton, config: "PlanConfig") -> dict[str, torch.Tensor]:
    """Return a training batch of full length on the ``meta`` device.

    Raises:
        RequestError: the model has no position for so many tokens.
    """
    meta, b, s = skeleton.meta, config.batch_size, config.seq_len
    limit = longest_input(meta.model)
    if limit is not None and s > limit and meta.task_type != "IMAGE_CLS":
        raise RequestError(f"seq_len {s}: this model has positions for at most {limit} tokens")
    dtype = next(parameter.dtype for parameter in meta.model.parameters())

    def tokens(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device="meta")

    if meta.task_type == "IMAGE_CLS":
        size = getattr(meta.config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(meta.config, "num_channels", 3)
        pixels = torch.zeros(b, channels, height, width, dtype=dtype, device="meta")
        return {"pixel_values": pixels, "labels": tokens(b)}
    if meta.task_type == "SPEECH_SEQ2SEQ":
        frames = 2 * meta.config.max_source_positions
        sound = torch.zeros(b, meta.config.num_mel_bins, frames, dtype=dtype, device="meta")
        return {"input_features": sound, "labels": tokens(b, s)}
    labels = tokens(b) if meta.task_type == "SEQ_CLS" else tokens(b, s)
    return {"input_ids": tokens(b, s), "labels": labels}


def longest_input(model: nn.Module) -> int | None:
    """Return how many tokens a model has learned positions for; None where positions are computed."""
    limits = []
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and (leaf in ("wpe", "embed_positions") or leaf == "position_embeddings"):
            taken = getattr(module, "offset", 0) or (0 if module.padding_idx is None else module.padding_idx + 1)
            limits.append(module.num_embeddings - taken)
    return min(limits) if limits else None


def _each(model: nn.Module, skeleton: Skeleton) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the whole model; tied ones come once."""
    for name, parameter in model.named_parameters():
        for _ in range(skeleton.repeats(name)):
            yield name, parameter


def _resident(model: nn.Module, skeleton: Skeleton, block: int) -> tuple[int, int]:
    """Return bytes of what is frozen and of what trains."""
    sizes = [0, 0]
    storages: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        if id(storage) not in storages:
            storages.add(id(storage))
            size = -(-storage.nbytes() // block) * block
            sizes[tensor.requires_grad] += size * skeleton.repeats(name)
    return sizes[0], sizes[1]


def _training_peak(
    model: Any,
    skeleton: Skeleton,
    inputs: dict[str, torch.Tensor],
    start: np.ndarray,
    optimizer_scratch: int,
    on_cpu: bool,
    block: int,
) -> np.ndarray:
    scratch = {} if on_cpu else CUDA_SCRATCH
    with recording(model, skeleton, inputs, scratch, _classes(skeleton), block) as (recorder, markers):
        output = model(**inputs)
        forward_end = len(recorder.events)
        markers.backward = True
        markers.mark(1)
        output.loss.backward()
        end = len(recorder.events)
        for parameter in model.parameters():
            number = None if parameter.grad is None else recorder.number(parameter.grad)
            if number is not None:
                recorder.parts[number] = GRADIENTS
    del output
    for parameter in model.parameters():
        parameter.grad = None
    peak, after = highest(start, [*markers.pieces(0, forward_end), *markers.pieces(forward_end, end)])
    stepping = after.copy()
    stepping[PARTS.index("optimizer")] += optimizer_scratch
    return peak if peak.sum() >= stepping.sum() else stepping


def _evaluation_peak(
    model: Any, skeleton: Skeleton, inputs: dict[str, torch.Tensor], start: np.ndarray, on_cpu: bool, block: int
) -> np.ndarray:
    model.eval()
    scratch = {} if on_cpu else CUDA_SCRATCH
    with torch.no_grad(), recording(model, skeleton, inputs, scratch, _classes(skeleton), block) as (recorder, markers):
        output = model(**inputs)
        end = len(recorder.events)
    del output
    return highest(start, markers.pieces(0, end))[0]


def _classes(skeleton: Skeleton) -> int | None:
    """Return the size of the logits' last dimension."""
    outputs = skeleton.meta.model.get_output_embeddings()  # type: ignore[operator]
    if outputs is not None:
        return int(outputs.weight.shape[0])
    return getattr(skeleton.meta.config, "num_labels", None)
