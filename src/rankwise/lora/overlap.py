"""Overlap of two adapters of one base model: how far they learned the same directions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, FactorPair, factor_pairs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerOverlap:
    """The directions that two adapters of ranks r1 and r2 share in one layer.

    Attributes:
        name: Name of the layer.
        similarity: ``(r1, r2)``, see `subspace_similarity`.
        shared_inputs: Number of directions that both A have in common: the sum of the squared
            cosines of the principal angles between their row spaces, from 0 to ``min(r1, r2)``.
        shared_outputs: The same for the column spaces of B. B starts at zero, so all of it was
            learned, while A keeps much of its random start.
        chance_inputs: Average of `shared_inputs` for random A, ``r1 * r2 / d_in``.
        chance_outputs: Average of `shared_outputs` for random B, ``r1 * r2 / d_out``.
    """

    name: str
    similarity: "Tensor"
    shared_inputs: float
    shared_outputs: float
    chance_inputs: float
    chance_outputs: float


def overlaps(first: Adapter, second: Adapter) -> list[LayerOverlap]:
    """Compare two adapters in the layers that both have, ordered by name.

    Raises:
        RequestError: They have no layer in common, or one that differs in size.
    """
    first_pairs = factor_pairs(first)
    second_pairs = {pair.name: pair for pair in factor_pairs(second)}
    common = [(pair, second_pairs[pair.name]) for pair in first_pairs if pair.name in second_pairs]
    if not common:
        names = f"{first_pairs[0].name!r} and {next(iter(second_pairs))!r}"
        raise RequestError(f"the two adapters have no layer in common; their first are {names}")
    return [_overlap(*pairs) for pairs in common]


def _overlap(first: FactorPair, second: FactorPair) -> LayerOverlap:
    if (first.d_in, first.d_out) != (second.d_in, second.d_out):
        raise RequestError(
            f"layer {first.name!r} is {first.d_in} -> {first.d_out} in the first adapter and "
            f"{second.d_in} -> {second.d_out} in the second; they need the same base model"
        )
    (a1, b1), (a2, b2) = first.matrices(), second.matrices()
    inputs = _squared_cosines(_directions(a1.T), _directions(a2.T))
    outputs = _squared_cosines(_directions(b1), _directions(b2))
    return LayerOverlap(
        name=first.name,
        similarity=subspace_similarity(a1, a2),
        shared_inputs=float(inputs.sum()),
        shared_outputs=float(outputs.sum()),
        chance_inputs=inputs.numel() / first.d_in,
        chance_outputs=outputs.numel() / first.d_out,
    )


def subspace_similarity(a1: "Tensor", a2: "Tensor") -> "Tensor":
    """Return phi for all numbers i, j of leading directions (Hu et al. 2021, section 7.2, eq. 4).

    ``phi(A1, A2, i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j)``, where the columns of U1 and
    U2 are the right singular vectors of A1 and A2, largest singular value first. It is 1 if one
    subspace contains the other, and averages ``max(i, j) / d_in`` for random subspaces.

    Args:
        a1: ``(r1, d_in)``.
        a2: ``(r2, d_in)``.

    Returns:
        ``(r1, r2)`` in float64, where phi of i and j is at ``[i - 1, j - 1]``.
    """
    import torch

    cosines = torch.zeros(len(a1), len(a2), dtype=torch.float64)
    nonzero = _squared_cosines(_directions(a1.double().T), _directions(a2.double().T))
    cosines[: nonzero.shape[0], : nonzero.shape[1]] = nonzero
    sums = cosines.cumsum(0).cumsum(1)
    rows, columns = torch.arange(1, len(a1) + 1), torch.arange(1, len(a2) + 1)
    return sums / torch.minimum(rows[:, None], columns[None, :])


def _directions(matrix: "Tensor") -> "Tensor":
    """Return the left singular vectors of a tall matrix ``(d, r)`` with nonzero singular values."""
    import torch

    q, r = torch.linalg.qr(matrix)  # (d, m), (m, r), where m = min(d, r)
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    noise = torch.finfo(torch.float64).eps * max(matrix.shape) * values[0]
    return q @ u[:, values > noise]  # (d, <= m)


def _squared_cosines(u1: "Tensor", u2: "Tensor") -> "Tensor":
    """Return the squared cosines between the columns of two orthonormal bases."""
    return (u1.T @ u2).square()
