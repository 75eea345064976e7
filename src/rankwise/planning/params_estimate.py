"""How many parameters an adapter has."""

from collections.abc import Iterable


def adapter_params(sizes: Iterable[tuple[int, int]], rank: int) -> int:
    """Count the entries of A ``(r, d_in)`` and B ``(d_out, r)`` over layers of ``(d_in, d_out)``.

    LoRA, Hu et al. 2021, section 4.2.
    """
    return sum(rank * (d_in + d_out) for d_in, d_out in sizes)


def estimate_lora_params(
    layer_dim: int, rank: int, num_layers: int = 32, *, modules_per_layer: int = 1
) -> int:
    """Count the trainable parameters of LoRA on square ``layer_dim x layer_dim`` matrices, over all layers.

    Each adapted matrix gets B ``(d, r)`` and A ``(r, d)``. Real models have matrices that are not square
    (grouped-query attention, MLPs); for those the exact count walks the model, see `adapter_params`.

    Args:
        layer_dim: width d of the matrices.
        rank: r, between 1 and ``layer_dim``.
        num_layers: transformer blocks.
        modules_per_layer: adapted matrices in each block.

    Returns:
        The number of parameters, as an ``int``.

    Raises:
        RequestError: a value is not a positive whole number, or the rank exceeds ``layer_dim``.

    Example:
        >>> estimate_lora_params(4096, 8)
        2097152
        >>> estimate_lora_params(4096, 8, modules_per_layer=2)  # q_proj and v_proj of Llama-2 7B
        4194304
    """
    from rankwise.checks import check_whole

    layer_dim = check_whole("layer_dim", layer_dim, at_least=1)
    num_layers = check_whole("num_layers", num_layers, at_least=1)
    modules_per_layer = check_whole("modules_per_layer", modules_per_layer, at_least=1)
    rank = check_whole("rank", rank, at_least=1, at_most=layer_dim)
    return num_layers * modules_per_layer * adapter_params([(layer_dim, layer_dim)], rank)
