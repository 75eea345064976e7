"""How far two adapters of one base model learnt the same directions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, Pair, pairs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerOverlap:
    """What two adapters of ranks r1 and r2 share in one layer.

    Attributes:
        name: of the layer.
        similarity: ``(r1, r2)``, entry ``[i - 1, j - 1]`` is phi of the first i and the first j directions of A, see
            `subspace_similarity`.
        shared_inputs: directions that both A have in common: the squared cosines of the principal angles between their
            row spaces, summed; between 0 and ``min(r1, r2)``.
        shared_outputs: likewise of the column spaces of B. B starts at zero, so all of it was learnt, while A keeps
            much of its random start; 0 where a B is zero.
        chance_inputs: what two random A of these ranks share on average, ``r1 * r2 / d_in``.
        chance_outputs: likewise of B, ``r1 * r2 / d_out``.
    """

    name: str
    similarity: "Tensor"
    shared_inputs: float
    shared_outputs: float
    chance_inputs: float
    chance_outputs: float


def overlaps(first: Adapter, second: Adapter) -> list[LayerOverlap]:
    """Compare two adapters in the layers that both have, in the order of their names.

    Raises:
        RequestError: there is no such layer, or one has other sizes: the adapters belong to other base models.
    """
    others = {pair.name: pair for pair in pairs(second)}
    both = [(pair, others[pair.name]) for pair in pairs(first) if pair.name in others]
    if not both:
        raise RequestError(
            f"the two adapters have no layer in common: {pairs(first)[0].name!r} in the first, "
            f"{next(iter(others))!r} in the second"
        )
    return [_overlap(one, other) for one, other in both]


def _overlap(one: Pair, other: Pair) -> LayerOverlap:
    sizes = [(pair.d_in, pair.d_out) for pair in (one, other)]
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"layer {one.name!r} is {sizes[0][0]} -> {sizes[0][1]} in the first adapter and {sizes[1][0]} -> "
            f"{sizes[1][1]} in the second; allowed are two adapters of one base model"
        )
    (a1, b1), (a2, b2) = one.matrices(), other.matrices()
    inputs, outputs = (
        _cosines(_directions(a1.T), _directions(a2.T)),
        _cosines(_directions(b1), _directions(b2)),
    )
    return LayerOverlap(
        name=one.name,
        similarity=subspace_similarity(a1, a2),
        shared_inputs=float(inputs.sum()),
        shared_outputs=float(outputs.sum()),
        chance_inputs=inputs.numel() / one.d_in,
        chance_outputs=outputs.numel() / one.d_out,
    )


def subspace_similarity(a1: "Tensor", a2: "Tensor") -> "Tensor":
    """Return phi for all numbers i, j of leading directions (Hu et al. 2021, section 7.2, equation 4).

    ``phi(A1, A2, i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j)``, between 0 and 1, where the columns of U1 and U2
    are the right singular vectors of A1 and A2, the largest singular value first. It is 1 where one subspace holds the
    other; of random subspaces it is ``max(i, j) / d_in`` on average.

    Args:
        a1: ``(r1, d_in)``.
        a2: ``(r2, d_in)``.

    Returns:
        ``(r1, r2)`` in float64; zero rows or columns where an A has fewer directions than its rank.
    """
    import torch

    cosines = _cosines(_directions(a1.double().T), _directions(a2.double().T))  # (<= r1, <= r2)
    found = torch.zeros(len(a1), len(a2), dtype=torch.float64)
    found[: cosines.shape[0], : cosines.shape[1]] = cosines
    sums = found.cumsum(0).cumsum(1)
    rows, columns = torch.arange(1, len(a1) + 1), torch.arange(1, len(a2) + 1)
    return sums / torch.minimum(rows[:, None], columns[None, :])


def _directions(matrix: "Tensor") -> "Tensor":
    """Return the left singular vectors of a tall matrix ``(d, r)``, without those whose singular value is zero."""
    import torch

    q, r = torch.linalg.qr(matrix)  # (d, m), (m, r), where m = min(d, r)
    u, values, _ = torch.linalg.svd(r, full_matrices=False)
    noise = torch.finfo(torch.float64).eps * max(matrix.shape) * values[0]
    return q @ u[:, values > noise]  # (d, <= m)


def _cosines(u1: "Tensor", u2: "Tensor") -> "Tensor":
    """Return the squared cosines between the directions of two orthonormal bases."""
    return (u1.T @ u2).square()
