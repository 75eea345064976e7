"""Cutting an adapter to a lower rank by its singular values, and which rank each layer gets."""

import heapq
import math
from collections.abc import Mapping

from rankwise.checks import check_whole
from rankwise.errors import RequestError, nearest
from rankwise.lora.adapter import Adapter, Pair, with_pairs
from rankwise.lora.spectra import LayerSpectrum, Spectrum


def truncate(spectrum: Spectrum, rank: int | Mapping[str, int]) -> Adapter:
    """Cut an adapter to a lower rank, so that each layer's delta-W is its best approximation of that rank.

    The best in Frobenius and spectral norm is the truncated singular value decomposition (Eckart and Young 1936); its
    Frobenius error is the root of the squared singular values left out. Each singular value of ``B @ A`` goes by its
    root to either factor: ``B = left * sqrt(values)`` ``(d_out, k)`` and ``A = sqrt(values) * right`` ``(k, d_in)``, so
    that both have the same norm. The layer's scaling stays as it was: ``lora_alpha`` becomes ``lora_alpha * k / r``
    (rsLoRA: ``* sqrt(k / r)``), so ``lora_alpha = r`` stays so. Factors keep their dtype. A layer whose rank is at or
    below the one asked for keeps its factors bit by bit.

    A direction with singular value zero adds nothing, but could still learn: it keeps a row of A and zeros in B (in an
    embedding the other way), since zeros in both would never receive a gradient.

    Args:
        spectrum: of the adapter, see `rankwise.lora.spectrum`; it serves for any number of cuts.
        rank: for all layers, or ``{layer name: rank}`` for all of them.

    Returns:
        The cut adapter with its config, as PEFT loads it; tensors beside the factors are the same objects as before.

    Raises:
        RequestError: a rank is no whole number, below 1 or above the largest there is; a layer is unknown or missing.
    """
    if isinstance(rank, Mapping):
        ranks = _check_names(spectrum, rank)
    else:
        whole = check_whole("rank", rank, at_least=1, at_most=spectrum.largest_rank)
        ranks = {layer.pair.name: whole for layer in spectrum.layers}
    return with_pairs(
        spectrum.adapter, [_cut(layer, ranks[layer.pair.name]) for layer in spectrum.layers]
    )


def _check_names(spectrum: Spectrum, given: Mapping[str, int]) -> dict[str, int]:
    layers = {layer.pair.name: layer.pair.rank for layer in spectrum.layers}
    for name in given:
        if name not in layers:
            raise RequestError(
                f"rank of {name!r}: the adapter has no such layer{nearest(name, layers)}"
            )
    for name in layers:
        if name not in given:
            raise RequestError(f"rank of {name!r} is missing; every layer needs one")
    return {
        name: check_whole(f"rank of {name}", value, at_least=1, at_most=layers[name])
        for name, value in given.items()
    }


def _cut(layer: LayerSpectrum, rank: int) -> Pair:
    """Return a layer's factors of rank k, in fp32 at least until they take their own dtype."""
    import torch

    pair = layer.pair
    if rank >= pair.rank:
        return pair
    kept = min(
        rank, len(layer.values)
    )  # fewer where the layer is smaller than the rank: zeros fill up
    a = layer.values.new_zeros(rank, pair.d_in)
    b = layer.values.new_zeros(pair.d_out, rank)
    roots = layer.values[:kept].sqrt()  # (k,)
    a[:kept] = roots[:, None] * layer.right[:kept]  # (k, d_in)
    b[:, :kept] = layer.left[:, :kept] * roots  # (d_out, k)
    noise = torch.finfo(torch.float64).eps * max(pair.d_in, pair.d_out) * layer.values[0]
    for i in torch.nonzero(layer.values[:kept] <= noise).flatten().tolist():
        if pair.is_embedding:
            a[i] = 0
            b[:, i] = layer.left[:, i] * math.sqrt(pair.d_out)  # the norm of PEFT's first B there
        else:
            a[i] = layer.right[i] / math.sqrt(
                3
            )  # the norm of PEFT's first A: uniform within 1 / sqrt(d_in)
            b[:, i] = 0
    return pair.with_matrices(a, b)


def ranks_by_energy(spectrum: Spectrum, energy: float) -> dict[str, int]:
    """Return the smallest rank of each layer whose cut keeps this share of the layer's squared singular values.

    Args:
        spectrum: of the adapter.
        energy: above 0 and at most 1; at 1 only directions that add nothing go.

    Returns:
        ``{layer name: rank}``, for `truncate`.

    Raises:
        RequestError: the energy is outside.
    """
    return {layer.pair.name: layer.rank_for(check_energy(energy)) for layer in spectrum.layers}


def check_energy(value: object) -> float:
    """Return a share of the energy as a ``float``.

    Raises:
        RequestError: it is no number above 0 and at most 1.
    """
    try:
        energy = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        energy = math.nan
    if isinstance(value, bool) or not 0 < energy <= 1:
        hint = f" (did you mean {energy / 100:g}?)" if 1 < energy <= 100 else ""
        raise RequestError(f"energy {value!r}: allowed is a number above 0 and at most 1{hint}")
    return energy


def ranks_by_budget(spectrum: Spectrum, params: int) -> dict[str, int]:
    """Return a rank for each layer: at most ``params`` in all, with as much energy of the whole adapter as that allows.

    A direction of a layer costs ``d_in + d_out`` parameters and brings its squared singular value. Each layer has its
    first direction; the others are taken in the order of energy by parameter, as far as they fit. Within a layer that
    is the order of singular values, so the ranks make a cut. This is the greedy solution of a knapsack: the best one
    where all layers have the same size, and else at most the energy of one direction below it. Should one rank for all
    layers keep more within the same budget, as can happen with few layers of unlike sizes, it is taken instead.

    Args:
        spectrum: of the adapter.
        params: the most entries that all factors A and B may have.

    Returns:
        ``{layer name: rank}``, for `truncate`.

    Raises:
        RequestError: the budget is no whole number, or too small for rank 1 in every layer.
    """
    costs = {layer.pair.name: layer.pair.d_in + layer.pair.d_out for layer in spectrum.layers}
    squares = {
        layer.pair.name: layer.singular_values.square().tolist() for layer in spectrum.layers
    }
    least = sum(costs.values())
    if check_whole("parameters", params, at_least=1) < least:
        raise RequestError(
            f"parameters {params}: rank 1 in every layer takes {least}; allowed is that or more"
        )
    params = int(params)
    shared = _share(squares, costs, params - least)
    same = {name: min(params // least, len(values)) for name, values in squares.items()}
    return max(shared, same, key=spectrum.energy_at)


def _share(squares: dict[str, list[float]], costs: dict[str, int], left: int) -> dict[str, int]:
    """Give every layer rank 1 and then, as far as ``left`` goes, what brings most energy by parameter."""
    ranks = dict.fromkeys(costs, 1)
    waiting = [
        (-values[1] / costs[name], name) for name, values in squares.items() if len(values) > 1
    ]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        if costs[name] > left:
            continue  # nor will a later direction of this layer fit
        left -= costs[name]
        ranks[name] += 1
        if ranks[name] < len(squares[name]):
            heapq.heappush(waiting, (-squares[name][ranks[name]] / costs[name], name))
    return ranks
