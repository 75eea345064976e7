"""A training step's memory from a handful of sizes, for a plain stack of transformer blocks."""

from typing import Literal

from rankwise.checks import check_whole
from rankwise.errors import RequestError, nearest
from rankwise.planning.params_estimate import estimate_lora_params

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a frozen weight. NF4: 4 bits and an fp32 scale per block of 64 (QLoRA, Dettmers et al. 2023, section 3)."""

BLOCK_MATRICES = 12
"""d x d matrices in a block: query, key, value, output, and an MLP of width 4 d (8 more)."""


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
    """Estimate what LoRA training keeps in memory at once, against full fine-tuning of the same stack.

    The model is ``num_layers`` blocks of 12 d x d matrices, d = ``layer_dim``; embeddings and the output layer are
    left out. With ``int8`` and ``nf4`` only the frozen base is quantised: adapter and computation are in bf16.

    - **Adapter and gradients** have the computing precision.
    - **Optimizer**: AdamW keeps two moments per trainable parameter in fp32, whatever the parameter's precision
      (8 bytes). Below fp32, mixed-precision training keeps an fp32 master copy as well (4 bytes), counted in
      ``optimizer_bytes``. So each trainable parameter takes 16 bytes in all, in fp32 (4 + 4 + 8) as in bf16
      (2 + 2 + 8 + 4) (ZeRO, Rajbhandari et al. 2020, section 3.1).
    - **Activations** grow with batch and length: ``s b d (34 + 5 a s / d)`` bytes a block at two bytes a number
      (Korthikanti et al. 2022, equation 1, no parallelism, dropout masks counted); without the second term where
      attention is fused, and only the blocks' inputs, ``2 s b d``, with gradient checkpointing, plus one block at
      work. The formula is an upper estimate for LoRA: a frozen linear layer need not keep its input unless an
      adapter on it does.

    Args:
        rank: r.
        layer_dim: d, width of the model.
        num_layers: blocks.
        precision: of the frozen weights.
        modules_per_layer: matrices in a block that have an adapter, at most 12.
        batch_size: b.
        seq_len: s, tokens per sequence.
        num_heads: a; default d / 128, at least 1.
        fused_attention: attention that does not keep its s x s scores.
        gradient_checkpointing: keep only the blocks' inputs and compute the rest again.

    Returns:
        ``rank``; ``lora_params`` and ``base_params``, counts; ``weights_bytes``, ``adapter_bytes``,
        ``gradients_bytes``, ``optimizer_bytes``, ``activations_bytes`` and their sum ``total_bytes``;
        ``full_finetuning_bytes``, the same sum with every weight trained in the computing precision;
        ``compression``, the number of trainable parameters in full fine-tuning for each in LoRA; and
        ``memory_ratio``, ``full_finetuning_bytes / total_bytes``.

    Raises:
        RequestError: a value is not allowed.

    Example:
        >>> estimate = estimate_training_memory(8)
        >>> estimate["lora_params"], estimate["adapter_bytes"], estimate["optimizer_bytes"]
        (2097152, 4194304, 25165824)
    """
    if precision not in WEIGHT_BYTES:
        raise RequestError(
            f"precision {precision!r}: allowed are {', '.join(WEIGHT_BYTES)}{nearest(str(precision), WEIGHT_BYTES)}"
        )
    layer_dim = check_whole("layer_dim", layer_dim, at_least=1)
    num_layers = check_whole("num_layers", num_layers, at_least=1)
    rank = check_whole("rank", rank, at_least=1, at_most=layer_dim)
    batch_size = check_whole("batch_size", batch_size, at_least=1)
    seq_len = check_whole("seq_len", seq_len, at_least=1)
    modules_per_layer = check_whole(
        "modules_per_layer", modules_per_layer, at_least=1, at_most=BLOCK_MATRICES
    )
    lora_params = estimate_lora_params(
        layer_dim, rank, num_layers, modules_per_layer=modules_per_layer
    )
    base_params = num_layers * BLOCK_MATRICES * layer_dim**2
    heads = (
        max(1, layer_dim // 128)
        if num_heads is None
        else check_whole("num_heads", num_heads, at_least=1)
    )
    computing = 4 if precision == "fp32" else 2

    def trained(params: int) -> tuple[int, int, int]:
        """Return bytes of the parameters, their gradients and their optimizer states."""
        return (
            params * computing,
            params * computing,
            params * (8 + (0 if precision == "fp32" else 4)),
        )

    scores = 0.0 if fused_attention else 5 * heads * seq_len / layer_dim
    block = seq_len * batch_size * layer_dim * (34 + scores) * computing / 2
    inputs = seq_len * batch_size * layer_dim * computing
    activations = round(
        num_layers * inputs + block if gradient_checkpointing else num_layers * block
    )

    weights = round(base_params * WEIGHT_BYTES[precision])
    adapter, gradients, optimizer = trained(lora_params)
    total = weights + adapter + gradients + optimizer + activations
    full = sum(trained(base_params)) + activations
    return {
        "rank": rank,
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
