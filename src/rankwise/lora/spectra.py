"""The singular values of what an adapter adds to each layer, and the figures that sum them up."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.lora.adapter import Adapter, Pair, pairs

if TYPE_CHECKING:
    from torch import Tensor

MOST = 0.99  # the share of the energy that counts as all but noise


@dataclass(frozen=True)
class LayerSpectrum:
    """The singular value decomposition of one layer's ``B @ A = left @ diag(values) @ right``, thin.

    Here m is the smallest of ``d_out``, r and ``d_in``: ``B @ A`` has no more singular values.

    Attributes:
        pair: the layer's factors.
        left: ``(d_out, m)``, orthonormal columns; in the factors' precision, fp32 at least.
        values: ``(m,)`` in float64, not scaled, largest first.
        right: ``(m, d_in)``, orthonormal rows; precision as ``left``.
    """

    pair: Pair
    left: "Tensor"
    values: "Tensor"
    right: "Tensor"

    @property
    def singular_values(self) -> "Tensor":
        """Those of delta-W, ``scaling * B @ A``: ``(m,)`` in float64, largest first."""
        return abs(self.pair.scaling) * self.values

    @property
    def norm(self) -> float:
        """Frobenius norm of delta-W."""
        return float(self.singular_values.square().sum().sqrt())

    @property
    def energy(self) -> "Tensor":
        """The share of the squared Frobenius norm in the first 1, 2, ... r directions: ``(r,)`` in float64.

        What the best approximation of rank k keeps (Eckart and Young 1936). Ones where delta-W is zero.
        """
        import torch

        squares = self.values.new_zeros(self.pair.rank)
        squares[: len(self.values)] = self.values.square()
        sums = squares.cumsum(0)
        return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)

    @property
    def effective_rank(self) -> float:
        """``exp`` of the entropy of the singular values over their sum (Roy and Vetterli 2007).

        Between 1 and r, r where all singular values are equal; 0 for a zero delta-W.
        """
        total = self.values.sum()
        if total <= 0:
            return 0.0
        shares = self.values[self.values > 0] / total
        return math.exp(float(-(shares * shares.log()).sum()))

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm (Rudelson and Vershynin 2007); 0 for a zero delta-W."""
        if self.values[0] <= 0:
            return 0.0
        return float((self.values / self.values[0]).square().sum())

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank, at least 1, whose best approximation keeps this share of the energy."""
        return 1 + int((self.energy < energy).sum())

    @property
    def uses_rank(self) -> bool:
        """More than half the rank is needed for 99 % of the energy."""
        return self.norm > 0 and 2 * self.rank_for(MOST) > self.pair.rank


@dataclass(frozen=True)
class Spectrum:
    """An adapter taken apart: decomposed once, it can be cut to many ranks (`rankwise.lora.truncate`).

    Attributes:
        adapter: what was decomposed.
        layers: in the order of their names.
    """

    adapter: Adapter
    layers: tuple[LayerSpectrum, ...]

    @property
    def largest_rank(self) -> int:
        """The largest rank of a layer."""
        return max(layer.pair.rank for layer in self.layers)

    @property
    def params(self) -> int:
        """Entries of all factors A and B."""
        return sum(layer.pair.rank * (layer.pair.d_in + layer.pair.d_out) for layer in self.layers)

    def energy_at(self, ranks: "dict[str, int]") -> float:
        """Return the share of the adapter's energy, over all layers, that a cut of each layer to its rank keeps."""
        total = sum(layer.norm**2 for layer in self.layers)
        if total <= 0:
            return 1.0
        kept = (
            layer.norm**2 * float(layer.energy[min(ranks[layer.pair.name], layer.pair.rank) - 1])
            for layer in self.layers
        )
        return sum(kept) / total


def spectrum(adapter: Adapter) -> Spectrum:
    """Decompose what an adapter adds to each layer.

    Args:
        adapter: PEFT's tensors and config, see `rankwise.lora.Adapter`.

    Raises:
        RequestError: it is not plain LoRA, incomplete, or has weights that are not finite.

    Example:
        >>> spectrum(read_adapter(Path("best"))).layers[0].effective_rank  # doctest: +SKIP
        5.3
    """
    return Spectrum(adapter, tuple(_decompose(pair) for pair in pairs(adapter)))


def _decompose(pair: Pair) -> LayerSpectrum:
    """Decompose ``B @ A`` by way of its core, so that nothing of shape ``(d_out, d_in)`` is ever formed.

    With the QR decompositions ``B = Q_b R_b`` and ``A^T = Q_a R_a``, ``B @ A = Q_b (R_b R_a^T) Q_a^T``: the core has
    the same singular values and costs r³. All in float64, whatever the precision of the factors.
    """
    import torch

    a, b = pair.matrices()  # (r, d_in), (d_out, r)
    q_b, r_b = torch.linalg.qr(b)  # (d_out, p), (p, r), where p = min(d_out, r)
    q_a, r_a = torch.linalg.qr(a.T)  # (d_in, q), (q, r), where q = min(d_in, r)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # (p, m), (m,), (m, q)
    kept = torch.promote_types(pair.a.dtype, torch.float32)
    return LayerSpectrum(pair, (q_b @ u).to(kept), values, (vh @ q_a.T).to(kept))
