"""The model as a LoRA or QLoRA script sets it up for training, without weights, and its batch."""

from typing import Any

import torch
from torch import nn

from rankwise.errors import RequestError, reading
from rankwise.models.auto import first_position, trained_heads
from rankwise.models.compat import quiet_libraries
from rankwise.models.device import DTYPES
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.memory.quantized import NF4Linear, QuantizedLinear, QuantizedLora, quantize
from rankwise.planning.params import make_peft_model
from rankwise.planning.repeated_blocks import Skeleton

POSITIONS = ("wpe", "embed_positions", "position_embeddings")
"""Names of embeddings of learned positions."""


def training_model(
    skeleton: Skeleton, config: PlanConfig, rank: int, kernels: DeviceKernels
) -> Any:
    """Quantise the shortened model, prepare it for training and put the adapter on.

    Gradient checkpointing runs blocks again with ``kernels``.

    Raises:
        RequestError: PEFT or transformers refuse.
    """
    model = skeleton.copy()
    dtype = DTYPES[config.precision]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with quiet_libraries():
        if config.quantization != "none":
            _quantize(model, skeleton, config, kernels.device.is_cpu)
        peft_model = make_peft_model(
            model, config, rank, skeleton.meta.task_type, {QuantizedLinear: QuantizedLora}
        )
        if config.gradient_checkpointing:
            _checkpoint(model, skeleton.meta.task_type, kernels)
    return peft_model.train()


def _quantize(model: Any, skeleton: Skeleton, config: PlanConfig, on_cpu: bool) -> None:
    from peft import prepare_model_for_kbit_training

    dtype = DTYPES[config.precision]
    # A checkpoint that is quantised on disk may keep some layers in full.
    on_disk = getattr(model.config, "quantization_config", None) or {}
    unquantized = on_disk.get("llm_int8_skip_modules") or ()
    heads = trained_heads(skeleton.meta.task_type)
    keep = (*config.modules_to_save, *heads, *unquantized)
    quantize(model, config.quantization, dtype, on_cpu, keep)
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for module in model.modules():
        if isinstance(module, NF4Linear) and module.bias is not None:
            # The first step of Linear4bit casts it for good.
            module.bias.data = module.bias.data.to(dtype)


def _checkpoint(model: Any, task_type: str, kernels: DeviceKernels) -> None:
    options = {"use_reentrant": False, "context_fn": kernels.checkpoint_contexts}
    with reading("gradient_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if task_type not in ("IMAGE_CLS", "SPEECH_SEQ2SEQ"):
        model.enable_input_require_grads()


def training_batch(skeleton: Skeleton, config: PlanConfig) -> dict[str, torch.Tensor]:
    """Return a training batch of full length on the ``meta`` device.

    Raises:
        RequestError: the model has no position for so many tokens.
    """
    meta, b, s = skeleton.meta, config.batch_size, config.seq_len
    check_length(skeleton, s)
    # A model that was prepared for quantised training has its convolutions in fp32.
    dtype = DTYPES[config.precision] if config.quantization == "none" else torch.float32

    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device="meta")

    if meta.task_type == "IMAGE_CLS":
        size = getattr(meta.config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(meta.config, "num_channels", 3)
        return {"pixel_values": zeros(b, channels, height, width, dtype=dtype), "labels": zeros(b)}
    if meta.task_type == "SPEECH_SEQ2SEQ":
        if not hasattr(meta.config, "num_mel_bins"):
            problem = f"{meta.config.model_type} takes sound otherwise than whisper; no plan for it"
            raise RequestError(f"model {meta.name!r}: {problem}")
        frames = 2 * meta.config.max_source_positions  # a convolution halves them
        sound = zeros(b, meta.config.num_mel_bins, frames, dtype=dtype)
        return {"input_features": sound, "labels": zeros(b, s)}
    labels = zeros(b) if meta.task_type == "SEQ_CLS" else zeros(b, s)
    return {"input_ids": zeros(b, s), "labels": labels}


def check_length(skeleton: Skeleton, seq_len: int) -> None:
    """Refuse texts that are longer than a model has positions for.

    Raises:
        RequestError: they are; the message says how long they may be.
    """
    meta = skeleton.meta
    limit = longest_input(meta.model)
    if limit is not None and seq_len > limit and meta.task_type != "IMAGE_CLS":
        problem = f"this model has positions for at most {limit} tokens"
        raise RequestError(f"seq_len {seq_len}: {problem}")


def longest_input(model: nn.Module) -> int | None:
    """Return the number of learned positions of a model; None if it computes positions."""
    limits = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITIONS:
            # OPT and RoBERTa leave the first few unused.
            unused = getattr(module, "offset", 0) or first_position(module)
            limits.append(module.num_embeddings - unused)
    return limits[-1] if limits else None  # the decoder's, where there are two


def logit_classes(skeleton: Skeleton) -> int | None:
    """Return the size of the logits' last dimension."""
    outputs = skeleton.meta.model.get_output_embeddings()  # type: ignore[operator]
    if outputs is not None:
        return int(outputs.weight.shape[0])
    return getattr(skeleton.meta.config, "num_labels", None)
