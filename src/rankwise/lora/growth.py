"""Growth of an adapter to a higher rank without any change of its effect."""

import math
from typing import TYPE_CHECKING

from rankwise.checks import check_whole
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, FactorPair, factor_pairs, replace_pairs

if TYPE_CHECKING:
    from torch import Generator


def grow(adapter: Adapter, rank: int, seed: int = 0) -> Adapter:
    """Raise the rank of every layer so that delta-W stays and the new directions can learn.

    A ``(r, d_in)`` gets new rows drawn as PEFT draws its first A (Kaiming-uniform with
    ``a = sqrt(5)``: uniform within ``1 / sqrt(d_in)``), and B ``(d_out, r)`` gets columns of zeros.
    So ``B @ A`` stays, the new columns of B receive a gradient in the first step and the new rows
    of A from the second step on. In an embedding the zeros are in A and standard normal columns in
    B, as in PEFT. Existing entries stay bit by bit, and ``lora_alpha`` changes such that the
    scaling of each layer stays.

    Args:
        adapter: The adapter, which does not change.
        rank: New rank of all layers. A layer that has this rank stays as it is.
        seed: Seed of the new entries, which are drawn layer by layer in the order of names.

    Raises:
        RequestError: The rank is below the present one or above the smaller side of a layer.
    """
    import torch

    pairs = factor_pairs(adapter)
    largest = max(pair.rank for pair in pairs)
    rank = check_whole("rank", rank, at_least=largest)
    narrow = min(pairs, key=lambda pair: min(pair.d_in, pair.d_out))
    side = min(narrow.d_in, narrow.d_out)
    if rank > max(side, largest):
        limit = f"at most {max(side, largest)}, the smaller side of {narrow.name} being {side}"
        raise RequestError(f"rank {rank} is larger than a layer allows: {limit}")
    generator = torch.Generator().manual_seed(seed)
    grown = [_grow(pair, rank, generator) if rank > pair.rank else pair for pair in pairs]
    return replace_pairs(adapter, grown)


def _grow(pair: FactorPair, rank: int, generator: "Generator") -> FactorPair:
    import torch

    new = rank - pair.rank
    a, b = pair.a.detach().flatten(1), pair.b.detach().flatten(1)  # (r, d_in), (d_out, r)
    rows, columns = torch.zeros(new, pair.d_in), torch.zeros(pair.d_out, new)
    if pair.is_embedding:
        columns.normal_(generator=generator)
    else:
        torch.nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
    return pair.with_matrices(torch.cat([a, rows.to(a)]), torch.cat([b, columns.to(b)], dim=1))
