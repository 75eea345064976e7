"""Truncation of an adapter by its singular values, and the choice of each layer's rank."""

import math
from collections.abc import Mapping

from rankwise.checks import check_whole
from rankwise.errors import RequestError, nearest
from rankwise.lora.adapter import Adapter, FactorPair, replace_pairs
from rankwise.lora.spectra import LayerSpectrum, Spectrum


def truncate(spectrum: Spectrum, rank: int | Mapping[str, int]) -> Adapter:
    """Return the adapter of lower rank with the best approximation of each layer's delta-W.

    The truncated singular value decomposition is the best one in Frobenius and spectral norm
    (Eckart and Young 1936). Both factors get the same norm: ``B = left * sqrt(values)`` and
    ``A = sqrt(values) * right``. They keep their dtype, and ``lora_alpha`` changes such that the
    scaling of each layer stays. A layer of this rank or a lower one stays bit by bit.

    A direction with singular value zero adds nothing but could still learn. It keeps a row of A
    and gets zeros in B (in an embedding the other way round): zeros in both would never receive a
    gradient.

    Args:
        spectrum: Spectrum of the adapter. It serves any number of truncations.
        rank: Rank of all layers, or ``{layer name: rank}`` with every layer.

    Raises:
        RequestError: A rank is below 1 or above the present one, or a layer is unknown or missing.
    """
    if isinstance(rank, Mapping):
        ranks = _check_names(spectrum, rank)
    else:
        whole = check_whole("rank", rank, at_least=1, at_most=spectrum.largest_rank)
        ranks = {layer.pair.name: whole for layer in spectrum.layers}
    pairs = [_truncate(layer, ranks[layer.pair.name]) for layer in spectrum.layers]
    return replace_pairs(spectrum.adapter, pairs)


def _check_names(spectrum: Spectrum, ranks: Mapping[str, int]) -> dict[str, int]:
    """Refuse a mapping that does not give each layer a rank up to its present one."""
    present = {layer.pair.name: layer.pair.rank for layer in spectrum.layers}
    for name in ranks:
        if name not in present:
            hint = nearest(name, present)
            raise RequestError(f"rank of {name!r}: the adapter has no such layer{hint}")
    for name in present:
        if name not in ranks:
            raise RequestError(f"rank of {name!r} is missing; every layer needs one")
    checked = {}
    for name, rank in ranks.items():
        checked[name] = check_whole(f"rank of {name}", rank, at_least=1, at_most=present[name])
    return checked


def _truncate(layer: LayerSpectrum, rank: int) -> FactorPair:
    import torch

    pair = layer.pair
    if rank >= pair.rank:
        return pair
    kept = min(rank, len(layer.values))  # fewer if a side of the layer is smaller than the rank
    a = layer.values.new_zeros(rank, pair.d_in)
    b = layer.values.new_zeros(pair.d_out, rank)
    roots = layer.values[:kept].sqrt()  # (k,)
    a[:kept] = roots[:, None] * layer.right[:kept]  # (k, d_in)
    b[:, :kept] = layer.left[:, :kept] * roots  # (d_out, k)
    noise = torch.finfo(torch.float64).eps * max(pair.d_in, pair.d_out) * layer.values[0]
    for i in torch.nonzero(layer.values[:kept] <= noise).flatten().tolist():
        if pair.is_embedding:
            a[i] = 0
            b[:, i] = layer.left[:, i] * math.sqrt(pair.d_out)  # norm of PEFT's first B
        else:
            a[i] = layer.right[i] / math.sqrt(3)  # norm of PEFT's first A, see `grow`
            b[:, i] = 0
    return pair.with_matrices(a, b)


def ranks_by_energy(spectrum: Spectrum, energy: float) -> dict[str, int]:
    """Return for each layer the smallest rank that keeps this share of its energy.

    Experts stacked in one parameter all get the rank of the expert that needs most.

    Args:
        spectrum: Spectrum of the adapter.
        energy: Share of the squared singular values, above 0 and at most 1.

    Returns:
        ``{layer name: rank}``, for `truncate`.

    Raises:
        RequestError: The energy is out of bounds.
    """
    energy = check_energy(energy)
    by_parameter: dict[str, int] = {}  # experts stacked in one parameter share a rank
    for layer in spectrum.layers:
        present = by_parameter.get(layer.pair.layer, 1)
        by_parameter[layer.pair.layer] = max(present, layer.rank_for(energy))
    return {layer.pair.name: by_parameter[layer.pair.layer] for layer in spectrum.layers}


def check_energy(value: object) -> float:
    """Return a share of the energy, a number above 0 and at most 1, as a ``float``."""
    try:
        energy = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        energy = math.nan
    if isinstance(value, bool) or not 0 < energy <= 1:
        hint = f" (did you mean {energy / 100:g}?)" if 1 < energy <= 100 else ""
        raise RequestError(f"energy {value!r}: allowed is a number above 0 and at most 1{hint}")
    return energy


def ranks_by_budget(spectrum: Spectrum, params: int) -> dict[str, int]:
    """Return ranks that keep as much of the adapter's energy as a number of parameters allows.

    A direction of a layer costs ``d_in + d_out`` parameters and adds its squared singular value.
    Each layer gets its first direction. The others follow in the order of energy per parameter, as
    long as they fit. This greedy solution of a knapsack problem is the best one if all layers have
    the same size, and otherwise worse by at most the energy of one direction. If one rank for all
    layers keeps more within the budget, it is returned instead.

    Args:
        spectrum: Spectrum of the adapter.
        params: Largest number of entries that all factors A and B may have together.

    Returns:
        ``{layer name: rank}``, for `truncate`.

    Raises:
        RequestError: The budget is not a whole number, or is too small for rank 1 in every layer;
            or the adapter has stacked experts, which share a rank.
    """
    if stacked := [layer.pair.layer for layer in spectrum.layers if layer.pair.experts > 1]:
        allowed = "allowed are one rank for all layers (rank) and a share of the energy (energy)"
        raise RequestError(f"the experts stacked in {stacked[0]} share one rank; {allowed}")
    costs: dict[str, int] = {}
    squares: dict[str, list[float]] = {}
    for layer in spectrum.layers:
        costs[layer.pair.name] = layer.pair.d_in + layer.pair.d_out
        squares[layer.pair.name] = layer.singular_values.square().tolist()
    least = sum(costs.values())
    params = check_whole("parameters", params, at_least=1)
    if params < least:
        raise RequestError(f"parameters {params}: rank 1 in every layer takes {least}, the minimum")
    greedy = _share_greedily(squares, costs, params - least)
    uniform = {name: min(params // least, len(values)) for name, values in squares.items()}
    return max(greedy, uniform, key=spectrum.energy_at)


def _share_greedily(
    squares: dict[str, list[float]], costs: dict[str, int], budget: int
) -> dict[str, int]:
    """Return ranks: 1 for every layer, then the directions with most energy per parameter."""
    ranks = dict.fromkeys(costs, 1)
    directions = []
    for name, values in squares.items():
        directions += [(-value / costs[name], name) for value in values[1:]]
    for _, name in sorted(directions):
        if costs[name] <= budget:
            budget -= costs[name]
            ranks[name] += 1
    return ranks
