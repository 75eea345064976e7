"""Estimates of parameters and memory from a few sizes, for a plain stack of blocks."""

from collections.abc import Iterable
from typing import Literal

from rankwise.checks import check_whole
from rankwise.errors import RequestError, nearest

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a frozen weight.

NF4: 4 bits and an fp32 scale for each 64 weights (QLoRA, Dettmers et al. 2023, section 3)."""

BLOCK_MATRICES = 12
"""d x d matrices in a block: query, key, value, output, and an MLP of width 4 d (8 more)."""


def adapter_params(sizes: Iterable[tuple[int, int]], rank: int) -> int:
    """Count the entries of A ``(r, d_in)`` and B ``(d_out, r)`` over layers of ``(d_in, d_out)``.

    LoRA, Hu et al. 2021, section 4.2.
    """
    return sum(rank * (d_in + d_out) for d_in, d_out in sizes)


def estimate_lora_params(
    layer_dim: int, rank: int, num_layers: int = 32, *, modules_per_layer: int = 1
) -> int:
    """Count the trainable parameters of LoRA on square ``layer_dim x layer_dim`` matrices.

    Each adapted matrix gets B ``(d, r)`` and A ``(r, d)``. Real models have matrices that are not
    square (grouped-query attention, MLPs); `rankwise.plan` counts those exactly.

    Args:
        layer_dim: width d of the matrices.
        rank: r, between 1 and ``layer_dim``.
        num_layers: transformer blocks.
        modules_per_layer: adapted matrices in each block.

    Returns:
        The number of parameters, over all layers.

    Raises:
        RequestError: a value is not a positive whole number, or the rank exceeds ``layer_dim``.

    Example:
        >>> estimate_lora_params(4096, 8)
        2097152
        >>> estimate_lora_params(4096, 8, modules_per_layer=2)  # q_proj and v_proj of Llama-2 7B
        4194304
    """
    layer_dim = check_whole("layer_dim", layer_dim, at_least=1)
    num_layers = check_whole("num_layers", num_layers, at_least=1)
    modules_per_layer = check_whole("modules_per_layer", modules_per_layer, at_least=1)
    rank = check_whole("rank", rank, at_least=1, at_most=layer_dim)
    return num_layers * modules_per_layer * adapter_params([(layer_dim, layer_dim)], rank)


def estimate_training_memory(
    rank: int,
    layer_dim: int = 4096,
    num_layers: int = 32,
    precision: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "bf16",
    *,
    modules_per_layer: int = 1,
    batch_size: int = 1,
    seq_len: int = 512,
    num_heads: int | None = None,
    fused_attention: bool = True,
    gradient_checkpointing: bool = False,
) -> dict[str, int | float]:
    """Estimate the peak memory of LoRA training, and that of full fine-tuning of the same stack.

    The model is ``num_layers`` blocks of 12 d x d matrices, d = ``layer_dim``; embeddings and the
    output layer are left out. With ``int8`` and ``nf4`` only the frozen base is quantised: adapter
    and computation are in bf16. `_trained_bytes` and `_activation_bytes` have the formulas.

    Args:
        rank: r.
        layer_dim: d, width of the model.
        num_layers: blocks.
        precision: precision of the frozen weights.
        modules_per_layer: matrices in a block that have an adapter, at most 12.
        batch_size: b.
        seq_len: s, tokens per sequence.
        num_heads: a; default d / 128, at least 1.
        fused_attention: attention does not keep its s x s scores.
        gradient_checkpointing: keep only the inputs of blocks and compute the rest again.

    Returns:
        ``rank``; ``lora_params`` and ``base_params``, counts; ``weights_bytes``, ``adapter_bytes``,
        ``gradients_bytes``, ``optimizer_bytes``, ``activations_bytes`` and their sum
        ``total_bytes``; ``full_finetuning_bytes``, the same sum with every weight trained in the
        computing precision; ``compression``, trainable parameters of full fine-tuning divided by
        those of LoRA; ``memory_ratio``, ``full_finetuning_bytes / total_bytes``.

    Raises:
        RequestError: a value is not allowed.

    Example:
        >>> estimate = estimate_training_memory(8)
        >>> estimate["lora_params"], estimate["adapter_bytes"], estimate["optimizer_bytes"]
        (2097152, 4194304, 25165824)
    """
    if precision not in WEIGHT_BYTES:
        allowed = ", ".join(WEIGHT_BYTES) + nearest(str(precision), WEIGHT_BYTES)
        raise RequestError(f"precision {precision!r}: allowed are {allowed}")
    d = check_whole("layer_dim", layer_dim, at_least=1)
    blocks = check_whole("num_layers", num_layers, at_least=1)
    r = check_whole("rank", rank, at_least=1, at_most=d)
    b = check_whole("batch_size", batch_size, at_least=1)
    s = check_whole("seq_len", seq_len, at_least=1)
    check_whole("modules_per_layer", modules_per_layer, at_least=1, at_most=BLOCK_MATRICES)
    heads = max(1, d // 128)
    if num_heads is not None:
        heads = check_whole("num_heads", num_heads, at_least=1)

    width = 4 if precision == "fp32" else 2
    lora_params = estimate_lora_params(d, r, blocks, modules_per_layer=modules_per_layer)
    base_params = blocks * BLOCK_MATRICES * d**2
    scores = 0.0 if fused_attention else 5 * heads * s / d
    activations = _activation_bytes(s * b * d, blocks, width, scores, gradient_checkpointing)
    weights = round(base_params * WEIGHT_BYTES[precision])
    adapter, gradients, optimizer = _trained_bytes(lora_params, width)
    total = weights + adapter + gradients + optimizer + activations
    full = sum(_trained_bytes(base_params, width)) + activations
    return {
        "rank": r,
        "lora_params": lora_params,
        "base_params": base_params,
        "weights_bytes": weights,
        "adapter_bytes": adapter,
        "gradients_bytes": gradients,
        "optimizer_bytes": optimizer,
        "activations_bytes": activations,
        "total_bytes": total,
        "full_finetuning_bytes": full,
        "compression": base_params / lora_params,
        "memory_ratio": full / total,
    }


def _trained_bytes(params: int, width: int) -> tuple[int, int, int]:
    """Return bytes of trainable parameters, of their gradients and of the optimizer.

    AdamW keeps two fp32 moments (8 bytes), and below fp32 a master copy too (4 bytes). So each
    parameter takes 16 bytes in fp32 (4 + 4 + 8) as in bf16 (2 + 2 + 8 + 4) (ZeRO, Rajbhandari et
    al. 2020, section 3.1).
    """
    master_copy = 0 if width == 4 else 4
    return params * width, params * width, params * (8 + master_copy)


def _activation_bytes(
    numbers: int, blocks: int, width: int, scores: float, gradient_checkpointing: bool
) -> int:
    """Return bytes of activations: ``s b d (34 + 5 a s / d)`` a block at two bytes a number.

    Korthikanti et al. 2022, equation 1, no parallelism, dropout masks counted; ``scores`` is the
    second term, 0 if attention is fused, and ``numbers`` is s b d. With gradient checkpointing: the
    inputs of all blocks, ``2 s b d`` each, and one block at work. The formula is an upper estimate
    for LoRA: a frozen linear layer without an adapter need not keep its input.
    """
    block = numbers * (34 + scores) * width / 2
    if gradient_checkpointing:
        return round(blocks * numbers * width + block)
    return round(blocks * block)
