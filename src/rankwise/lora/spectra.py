"""Spectra of an adapter: the singular values of each layer's delta-W, and figures from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.lora.adapter import Adapter, FactorPair, factor_pairs

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_ALL = 0.99  # share of the energy; the rest counts as noise


@dataclass(frozen=True)
class LayerSpectrum:
    """The thin singular value decomposition ``B @ A = left @ diag(values) @ right`` of one layer.

    It has m singular values, where m is the smallest of ``d_out``, r and ``d_in``.

    Attributes:
        pair: The layer's factors.
        left: ``(d_out, m)``, orthonormal columns, in the precision of the factors or fp32.
        values: ``(m,)`` in float64, without the scaling, largest first.
        right: ``(m, d_in)``, orthonormal rows, precision as ``left``.
    """

    pair: FactorPair
    left: "Tensor"
    values: "Tensor"
    right: "Tensor"

    @property
    def singular_values(self) -> "Tensor":
        """Singular values of delta-W, which is ``scaling * B @ A``: ``(m,)``, largest first."""
        return abs(self.pair.scaling) * self.values

    @property
    def norm(self) -> float:
        """Frobenius norm of delta-W."""
        return self.error_at(0)

    def error_at(self, rank: int) -> float:
        """Return the Frobenius norm of the part of delta-W that truncation to a rank loses."""
        return float(self.singular_values[rank:].square().sum().sqrt())

    @property
    def energy(self) -> "Tensor":
        """Share of the squared Frobenius norm in the first 1, 2, ... r directions: ``(r,)``.

        All shares are 1 if delta-W is zero.
        """
        import torch

        squares = self.values.new_zeros(self.pair.rank)
        squares[: len(self.values)] = self.values.square()
        sums = squares.cumsum(0)
        return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)

    def energy_at(self, rank: int) -> float:
        """Return the share of the energy that truncation to a rank keeps."""
        return float(self.energy[min(rank, self.pair.rank) - 1])

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank, at least 1, that keeps this share of the energy."""
        return 1 + int((self.energy < energy).sum())

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the singular values (Roy and Vetterli 2007), at most r."""
        total = self.values.sum()
        if total <= 0:
            return 0.0
        shares = self.values[self.values > 0] / total
        return math.exp(float(-(shares * shares.log()).sum()))

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm (Rudelson and Vershynin 2007)."""
        if self.values[0] <= 0:
            return 0.0
        return float((self.values / self.values[0]).square().sum())

    @property
    def uses_rank(self) -> bool:
        """Whether 99 % of the energy needs more than half of the rank."""
        return self.norm > 0 and 2 * self.rank_for(NEARLY_ALL) > self.pair.rank


@dataclass(frozen=True)
class Spectrum:
    """The decomposition of an adapter, which `rankwise.lora.truncate` can use for many ranks.

    Attributes:
        adapter: The adapter that was decomposed.
        layers: The layers, ordered by name.
    """

    adapter: Adapter
    layers: tuple[LayerSpectrum, ...]

    @property
    def largest_rank(self) -> int:
        """Largest rank of a layer."""
        return max(layer.pair.rank for layer in self.layers)

    @property
    def params(self) -> int:
        """Number of entries of all factors A and B."""
        return sum(layer.pair.params for layer in self.layers)

    def energy_at(self, ranks: Mapping[str, int]) -> float:
        """Return the share of the whole adapter's energy that truncation to these ranks keeps."""
        total = sum(layer.norm**2 for layer in self.layers)
        if total <= 0:
            return 1.0
        kept = sum(layer.norm**2 * layer.energy_at(ranks[layer.pair.name]) for layer in self.layers)
        return kept / total


def spectrum(adapter: Adapter) -> Spectrum:
    """Decompose the delta-W of every layer of an adapter.

    Raises:
        RequestError: It is not plain LoRA, is incomplete, or has weights that are not finite.

    Example:
        >>> spectrum(read_adapter(Path("best"))).layers[0].effective_rank  # doctest: +SKIP
        5.3
    """
    return Spectrum(adapter, tuple(_decompose(pair) for pair in factor_pairs(adapter)))


def _decompose(pair: FactorPair) -> LayerSpectrum:
    """Decompose ``B @ A`` without ever forming this ``(d_out, d_in)`` matrix.

    With the QR decompositions ``B = Q_b R_b`` and ``A^T = Q_a R_a`` the product is
    ``Q_b (R_b R_a^T) Q_a^T``. The core in brackets has the same singular values and costs r³.
    """
    import torch

    a, b = pair.matrices()  # (r, d_in), (d_out, r)
    q_b, r_b = torch.linalg.qr(b)  # (d_out, p), (p, r), where p = min(d_out, r)
    q_a, r_a = torch.linalg.qr(a.T)  # (d_in, q), (q, r), where q = min(d_in, r)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # (p, m), (m,), (m, q)
    # PyTorch does not promote 8-bit floats.
    dtype = pair.a.dtype if pair.a.dtype.itemsize > 4 else torch.float32
    return LayerSpectrum(pair, (q_b @ u).to(dtype), values, (vh @ q_a.T).to(dtype))
