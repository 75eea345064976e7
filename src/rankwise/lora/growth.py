"""Growing an adapter to a higher rank without changing what it does."""

import math
from typing import TYPE_CHECKING

from rankwise.checks import check_whole
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, Pair, pairs, with_pairs

if TYPE_CHECKING:
    from torch import Generator


def grow(adapter: Adapter, rank: int, seed: int = 0) -> Adapter:
    """Raise every layer's rank, so that the adapter does what it did and the new part can learn.

    A ``(r, d_in)`` gets new rows as PEFT starts them, Kaiming-uniform with ``a = sqrt(5)``: uniform within
    ``1 / sqrt(d_in)``; B ``(d_out, r)`` gets columns of zeros. So ``B @ A`` stays as it was, and the new columns of B
    receive a gradient at once, the new rows of A from the second step on. An embedding has its zeros in A and standard
    normal columns in B, as in PEFT. The layer's scaling stays as it was: ``lora_alpha`` becomes
    ``lora_alpha * rank / r`` (rsLoRA: ``* sqrt(rank / r)``). The factors' old entries stay bit by bit.

    Args:
        adapter: PEFT's tensors and config.
        rank: for all layers; a layer that has as much keeps its rank.
        seed: of the new entries, layer by layer in the order of names.

    Returns:
        The grown adapter with its config; tensors beside the factors are the same objects as before.

    Raises:
        RequestError: the rank is no whole number, not above the present one, or above the smaller side of a layer.
    """
    import torch

    layers = pairs(adapter)
    largest = max(pair.rank for pair in layers)
    rank = check_whole("rank", rank, at_least=largest)
    narrow = min(layers, key=lambda pair: min(pair.d_in, pair.d_out))
    side = min(narrow.d_in, narrow.d_out)
    if rank > max(side, largest):
        raise RequestError(
            f"rank {rank} is larger than a layer allows: at most {max(side, largest)}, "
            f"the smaller side of {narrow.name} being {side} ({narrow.d_in} -> {narrow.d_out})"
        )
    generator = torch.Generator().manual_seed(seed)
    return with_pairs(
        adapter, [_grow(pair, rank, generator) if rank > pair.rank else pair for pair in layers]
    )


def _grow(pair: Pair, rank: int, generator: "Generator") -> Pair:
    import torch

    new = rank - pair.rank
    a, b = pair.a.detach().flatten(1), pair.b.detach().flatten(1)  # (r, d_in), (d_out, r)
    rows, columns = torch.zeros(new, pair.d_in), torch.zeros(pair.d_out, new)
    if pair.is_embedding:
        columns.normal_(generator=generator)
    else:
        torch.nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
    return pair.with_matrices(torch.cat([a, rows.to(a)]), torch.cat([b, columns.to(b)], dim=1))
