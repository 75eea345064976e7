"""The model as a LoRA or QLoRA script sets it up for training, without weights, and a batch for it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rankwise.errors import RequestError
from rankwise.models.auto import first_position, trained_heads
from rankwise.models.compat import first_sentence, quiet_libraries
from rankwise.planning.memory.quantized import NF4Linear, QuantizedLinear, QuantizedLora, quantize
from rankwise.planning.params import Skeleton, put_on_adapter

if TYPE_CHECKING:
    from rankwise.planning.config import PlanConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POSITIONS = ("wpe", "embed_positions", "position_embeddings")  # names of learned positions


def training_model(skeleton: Skeleton, config: "PlanConfig", rank: int, on_cpu: bool) -> Any:
    """Quantise the cut model, prepare it for training and put the adapter on, as the libraries' guides do.

    Raises:
        RequestError: PEFT or transformers refuse.
    """
    model, task, dtype = skeleton.copy(), skeleton.meta.task_type, DTYPES[config.precision]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with quiet_libraries():
        if config.quantization != "none":
            from peft import prepare_model_for_kbit_training

            written = (
                getattr(model.config, "quantization_config", None) or {}
            )  # of a checkpoint quantised on disk
            unquantized = written.get("llm_int8_skip_modules") or ()
            keep = (*config.modules_to_save, *trained_heads(task), *unquantized)
            quantize(model, config.quantization, dtype, on_cpu, keep)
            prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            for module in model.modules():
                if isinstance(module, NF4Linear) and module.bias is not None:
                    module.bias.data = module.bias.data.to(
                        dtype
                    )  # as the first step of Linear4bit does, for good
        peft_model = put_on_adapter(model, config, rank, task, {QuantizedLinear: QuantizedLora})
        if config.gradient_checkpointing:
            try:
                model.gradient_checkpointing_enable(
                    gradient_checkpointing_kwargs={"use_reentrant": False}
                )  # type: ignore[operator]
            except ValueError as error:
                raise RequestError(f"gradient_checkpointing: {first_sentence(error)}") from None
            if task not in ("IMAGE_CLS", "SPEECH_SEQ2SEQ"):
                model.enable_input_require_grads()  # type: ignore[operator]
    return peft_model.train()


def training_batch(skeleton: Skeleton, config: "PlanConfig") -> dict[str, torch.Tensor]:
    """Return a training batch of full length on the ``meta`` device.

    Raises:
        RequestError: the model has no position for so many tokens.
    """
    meta, b, s = skeleton.meta, config.batch_size, config.seq_len
    limit = longest_input(meta.model)
    if limit is not None and s > limit and meta.task_type != "IMAGE_CLS":
        raise RequestError(f"seq_len {s}: this model has positions for at most {limit} tokens")
    # A model that was prepared for quantised training has its convolutions in fp32.
    dtype = DTYPES[config.precision] if config.quantization == "none" else torch.float32

    def tokens(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device="meta")

    if meta.task_type == "IMAGE_CLS":
        size = getattr(meta.config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.zeros(
            b, getattr(meta.config, "num_channels", 3), height, width, dtype=dtype, device="meta"
        )
        return {"pixel_values": pixels, "labels": tokens(b)}
    if meta.task_type == "SPEECH_SEQ2SEQ":
        frames = 2 * meta.config.max_source_positions  # a convolution halves them
        sound = torch.zeros(b, meta.config.num_mel_bins, frames, dtype=dtype, device="meta")
        return {"input_features": sound, "labels": tokens(b, s)}
    return {
        "input_ids": tokens(b, s),
        "labels": tokens(b) if meta.task_type == "SEQ_CLS" else tokens(b, s),
    }


def longest_input(model: nn.Module) -> int | None:
    """Return how many tokens a model has learned positions for; None where positions are computed."""
    limits = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITIONS:
            # OPT and RoBERTa leave the first few unused.
            taken = getattr(module, "offset", 0) or first_position(module)
            limits.append(module.num_embeddings - taken)
    return limits[-1] if limits else None  # the decoder's, where there are two


def logit_classes(skeleton: Skeleton) -> int | None:
    """Return the size of the logits' last dimension."""
    outputs = skeleton.meta.model.get_output_embeddings()  # type: ignore[operator]
    if outputs is not None:
        return int(outputs.weight.shape[0])
    return getattr(skeleton.meta.config, "num_labels", None)
